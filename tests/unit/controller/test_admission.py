"""Slots and leases: a state machine, driven here by random schedules."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config import EvalSection, EvalSetSection
from config.evaluation import plan_evaluation
from controller.admission import (
    MIN_LIMIT_SECONDS,
    PACE_EPISODES,
    ActorReport,
    Admission,
    AdmissionSettings,
    Pace,
    episode_seed,
    task_of_group,
)
from protocol.messages import EpisodeKey, TaskOutcome
from tests.fixtures.controller import PLAN, make


def lease_all(admission: Admission, actor: bytes = b"a") -> list:
    return list(iter(lambda: admission.lease(actor), None))


def test_no_more_groups_are_admitted_than_there_are_slots():
    admission = make(groups=2, group_size=3, max_staleness=1)
    assert {lease.key.group for lease in lease_all(admission)} == {0, 1, 2, 3}


def test_a_slot_comes_back_only_when_the_weights_are_applied():
    admission = make()
    lease_all(admission)
    admission.hold_until_applied(version=1, groups=[0, 1])
    assert lease_all(admission) == []
    admission.free_slots(1)
    assert {lease.key.group for lease in lease_all(admission)} == {4, 5}


def test_a_dropped_group_is_replaced_so_that_all_updates_can_happen():
    admission = make(updates=1, max_staleness=0)
    lease_all(admission)
    admission.replace_dropped([1])
    assert {lease.key.group for lease in lease_all(admission)} == {2}


def test_admission_stops_when_the_last_update_has_its_groups():
    admission = make(updates=1, max_staleness=3)
    assert {lease.key.group for lease in lease_all(admission)} == {0, 1}


def test_evaluation_episodes_go_out_before_training_episodes():
    admission = make()
    admission.evaluate(evaluation=0, episodes=2)
    assert [admission.lease(b"a").key for _ in range(2)] == [
        EpisodeKey(0, 0, True),
        EpisodeKey(0, 1, True),
    ]
    assert not admission.lease(b"a").key.evaluation


def test_evaluation_sets_are_leased_with_their_tasks_and_environments():
    sets = {
        "test": EvalSetSection(first_task=4, tasks=2, settings={"held_out": "valid_seen"}),
        "train": EvalSetSection(split="train", tasks=1),
    }
    admission = make(evaluation=plan_evaluation(EvalSection(samples=2, sets=sets)))
    admission.evaluate(evaluation=0, episodes=6)
    leases = [admission.lease(b"a") for _ in range(6)]
    assert [(one.evaluation_set, one.split, one.task_index) for one in leases] == [
        ("test", "held_out", 4),
        ("test", "held_out", 5),
        ("test", "held_out", 4),
        ("test", "held_out", 5),
        ("train", "train", 0),
        ("train", "train", 0),
    ]
    assert len({one.seed for one in leases}) == 6


def test_an_evaluation_of_more_episodes_than_tasks_plays_them_again():
    admission = make()
    admission.evaluate(evaluation=0, episodes=12)
    assert [admission.lease(b"a").task_index for _ in range(12)] == [*range(10), 0, 1]


def test_a_lost_actors_episode_is_leased_again_as_another_attempt_with_the_same_seed():
    admission = make()
    first = admission.lease(b"a")
    admission.take_back_from(b"a")
    again = admission.lease(b"b")
    assert (again.key, again.lease_attempt, again.seed, again.task_index) == (
        first.key,
        1,
        first.seed,
        first.task_index,
    )
    assert admission.has_lease(first.key, 1, b"b")
    assert not admission.has_lease(first.key, 0, b"a") and not admission.has_lease(
        first.key, 1, b"a"
    ), "it is another actor's now"


def test_an_episode_is_given_up_when_its_leases_are_used_up():
    admission = make(max_leases=2)
    key = admission.lease(b"a").key
    assert admission.take_back_from(b"a") == []
    assert admission.lease(b"b").key == key
    assert admission.take_back_from(b"b") == [key]


def test_admission_leases_a_slow_episode_to_another_actor_while_its_own_lives():
    """An episode that takes too long is leased to another actor while its own lives."""
    admission = make(max_leases=2, episode_seconds=10.0)
    slow = admission.lease(b"a", now=10.0)
    quick = admission.lease(b"a", now=20.0)
    assert admission.take_back_overdue(now=25.0) == []
    assert not admission.has_lease(slow.key, 0, b"a") and admission.has_lease(quick.key, 0, b"a")
    assert admission.lease(b"b", now=30.0).key == slow.key
    assert admission.take_back_overdue(now=50.0) == [slow.key], "its leases are used up"


def test_who_plays_longest_is_listed_first():
    admission = make()
    keys = [
        admission.lease(actor, now=seconds).key
        for actor, seconds in ((b"a", 5.0), (b"b", 1.0), (b"c", 3.0))
    ]
    assert admission.longest_in_flight(now=7.0, limit=2) == [
        (keys[1], b"b", 0, 6.0),
        (keys[2], b"c", 0, 4.0),
    ]


def played(episodes: int, seconds: float, episode_seconds: float = 1800.0) -> Admission:
    """So many episodes have ended, each after so long."""
    admission = make(groups=50, max_leases=5, episode_seconds=episode_seconds)
    for _ in range(episodes):
        lease = admission.lease(b"a", now=0.0)
        assert admission.end_episode(lease.key, b"a", lease.lease_attempt, now=seconds)
    return admission


def test_an_episode_that_never_ends_is_given_up_at_the_pace_of_the_others():
    admission = played(PACE_EPISODES, seconds=25.0)
    began = 1000.0
    leases = []
    stuck = admission.lease(b"a", now=began).key
    now = began
    for _ in range(5):
        given_up = admission.take_back_overdue(now)
        while not given_up and stuck in admission.leased:
            now += 1.0
            given_up = admission.take_back_overdue(now)
        leases.append(now - began - sum(leases))
        if not given_up:
            assert admission.lease(b"b", now=now).key == stuck
    assert given_up == [stuck] and leases == [101, 201, 401, 801, 1601]


@pytest.mark.parametrize(
    ("episodes", "seconds", "limit"),
    [
        (PACE_EPISODES - 1, 25.0, 1800.0),
        (PACE_EPISODES, 1.0, MIN_LIMIT_SECONDS),
        (PACE_EPISODES, 100.0, 400.0),
        (PACE_EPISODES, 1000.0, 1800.0),
    ],
    ids=["too few have ended", "quick ones", "4 times the usual", "never longer than the setting"],
)
def test_how_long_an_episode_may_take_follows_how_long_others_took(episodes, seconds, limit):
    admission = played(episodes, seconds)
    key = admission.lease(b"a", now=0.0).key
    admission.take_back_overdue(now=limit)
    assert key in admission.leased
    admission.take_back_overdue(now=limit + 1)
    assert key not in admission.leased


def test_admission_limit_follows_episodes_that_become_slow_though_none_ended():
    """The limit follows where all episodes become slow, though none came to its end."""
    pace = Pace(1800.0)
    for seconds in (1.0,) * PACE_EPISODES + (70.0,) * PACE_EPISODES:
        pace.add(seconds)
    assert pace.limit_seconds(0) == 280.0


def test_an_episode_whose_actor_does_not_know_of_it_is_leased_again():
    admission = make()
    known, lost, on_its_way = (admission.lease(b"a", now=float(second)) for second in range(3))
    others = admission.lease(b"b", now=0.0)
    assert (
        admission.take_back_unknown({b"a": ActorReport(12.0, {(known.key, 0)})}, seconds=10.0) == []
    )
    assert (admission.lease(b"c").key, admission.revoked) == (lost.key, [(lost.key, 0, b"a")])
    assert (
        admission.has_lease(known.key, 0, b"a")
        and admission.has_lease(on_its_way.key, 0, b"a")
        and admission.has_lease(others.key, 0, b"b")
    )


def test_a_resumed_run_plays_only_the_members_that_are_missing():
    admission = make()
    admission.__init__(admission.settings)
    admission.start(
        next_group=7, received=[EpisodeKey(7, 0), EpisodeKey(7, 2)], updates_remaining=5
    )
    assert [lease.key for lease in lease_all(admission) if lease.key.group == 7] == [
        EpisodeKey(7, 1)
    ]


def resumed(
    groups: int = 1, max_staleness: int = 0, updates: int = 5, complete: int = 3
) -> Admission:
    """Make the admission of a resumed run, from group 7 on.

    So many groups of two members are `complete` in the log, and of the next one a member is there.
    """
    admission = Admission(
        AdmissionSettings(
            groups, 2, max_staleness, 3, seed=0, train_size=1000, held_out_size=10, evaluation=PLAN
        )
    )
    received = [EpisodeKey(7 + group, member) for group in range(complete) for member in range(2)]
    admission.start(
        next_group=7, received=[*received, EpisodeKey(7 + complete, 0)], updates_remaining=updates
    )
    return admission


def test_a_resumed_run_plays_nothing_again_of_groups_beyond_its_slots():
    admission = resumed()
    played = lease_all(admission)
    for update, group in enumerate((7, 8, 9), 1):
        admission.hold_until_applied(update, [group])
        admission.free_slots(update)
        played += lease_all(admission)
    assert [lease.key for lease in played] == [EpisodeKey(10, 1)]


def test_groups_that_were_dropped_before_they_were_admitted_take_no_slot():
    admission = resumed(updates=2)
    admission.replace_dropped([8, 9])
    admission.hold_until_applied(1, [7])
    admission.free_slots(1)
    assert admission.holding == {10} and [lease.key for lease in lease_all(admission)] == [
        EpisodeKey(10, 1)
    ]


def test_groups_that_were_trained_on_before_they_were_admitted_take_no_slot():
    admission = resumed()
    for update, group in enumerate((7, 8, 9), 1):
        admission.hold_until_applied(update, [group])
    admission.free_slots(3)
    assert admission.holding == {10}


@given(
    groups=st.integers(1, 3),
    staleness=st.integers(0, 2),
    updates=st.integers(1, 6),
    logged=st.lists(st.booleans(), max_size=40),
    useless=st.sets(st.integers(0, 60)),
    eager=st.booleans(),
)
def test_a_resumed_run_comes_to_its_end_whatever_is_in_its_log_and_plays_none_of_it(
    groups, staleness, updates, logged, useless, eager
):
    """`logged`: for each member of groups of two, in order, whether it is in the log.

    Groups in `useless` are dropped once complete. `eager`: the learner is through with its log
    before any weights are applied.
    """
    admission = Admission(
        AdmissionSettings(
            groups, 2, staleness, 3, seed=0, train_size=1000, held_out_size=10, evaluation=PLAN
        )
    )
    log = {EpisodeKey(*divmod(i, 2)) for i, there in enumerate(logged) if there}
    have = set(log)
    batch = []
    trained = 0
    applied = 0
    cursor = 0
    admission.start(
        next_group=0, received=sorted(log, key=lambda key: key.id), updates_remaining=updates
    )
    for _ in range(400):
        while trained < updates and {EpisodeKey(cursor, 0), EpisodeKey(cursor, 1)} <= have:
            if cursor in useless:
                admission.replace_dropped([cursor])
            else:
                batch.append(cursor)
            cursor += 1
            if len(batch) == groups:
                trained += 1
                admission.hold_until_applied(trained, batch)
                batch = []
                if not eager:
                    break
        if applied < trained:
            applied += 1
            admission.free_slots(applied)
        for lease in lease_all(admission):
            assert lease.key not in have
            have.add(lease.key)
        assert len(admission.holding) <= admission.settings.slots
    assert trained == applied == updates


def test_finishing_cancels_training_episodes_and_leaves_evaluations():
    admission = make(groups=1, group_size=2, max_staleness=0)
    admission.evaluate(0, 1)
    evaluation = admission.lease(b"a")
    training = admission.lease(b"a")
    assert set(admission.finish()) == {training.key, EpisodeKey(0, 1)}
    assert admission.has_lease(evaluation.key, 0, b"a")
    assert not admission.has_lease(training.key, 0, b"a")


def test_an_episode_is_ended_by_whoever_had_a_lease_of_it_and_nobody_else():
    admission = make()
    first = admission.lease(b"a")
    assert (
        not admission.end_episode(first.key, b"b", 0)
        and not admission.end_episode(first.key, b"a", 1)
        and not admission.end_episode(first.key, b"a", -1)
    )
    assert admission.has_lease(first.key, 0, b"a")
    admission.take_back_from(b"a")
    assert admission.end_episode(first.key, b"a", 0), (
        "its trajectory had arrived before it was lost"
    )
    assert first.key not in [lease.key for lease in lease_all(admission, b"b")]


def test_tasks_and_seeds_do_not_depend_on_history():
    assert task_of_group(3, 17, 1000) == task_of_group(3, 17, 1000)
    assert episode_seed(3, EpisodeKey(1, 2)) != episode_seed(3, EpisodeKey(2, 1))
    assert 0 <= episode_seed(3, EpisodeKey(1, 2)) < 2**31


@given(
    groups=st.integers(1, 3),
    staleness=st.integers(0, 3),
    schedule=st.lists(st.sampled_from(["finish", "train", "apply", "drop"]), max_size=120),
    data=st.data(),
)
def test_invariant_1_no_trained_token_is_older_than_max_staleness(
    groups, staleness, schedule, data
):
    """A group's age when it is trained is at most S versions, whatever the order of events.

    It is counted from when it was *admitted*.
    """
    admission = make(groups=groups, group_size=1, max_staleness=staleness, updates=10_000)
    engine_version = learner_version = 0
    admitted_at: dict[int, int] = {}
    finished: set[int] = set()
    consumed = 0  # all groups below were trained on or dropped
    dropped: set[int] = set()
    awaiting: list[int] = []

    def note_admissions() -> None:
        for lease in lease_all(admission):
            admitted_at[lease.key.group] = engine_version

    note_admissions()
    for event in schedule:
        open_groups = sorted(set(admitted_at) - finished - dropped)
        if event == "finish" and open_groups:
            finished.add(data.draw(st.sampled_from(open_groups)))
        elif event == "drop" and open_groups:
            group = data.draw(st.sampled_from(open_groups))
            dropped.add(group)
            admission.replace_dropped([group])
        elif event == "train":
            batch = []
            cursor = consumed
            while len(batch) < groups and (cursor in finished or cursor in dropped):
                if cursor in finished:
                    batch.append(cursor)
                cursor += 1
            if len(batch) == groups:
                for group in batch:
                    assert learner_version - admitted_at[group] <= staleness
                consumed = cursor
                learner_version += 1
                awaiting.append(learner_version)
                admission.hold_until_applied(learner_version, batch)
        elif event == "apply" and awaiting:
            engine_version = awaiting.pop(0)
            admission.free_slots(engine_version)
        note_admissions()
        assert len(admission.holding) <= (staleness + 1) * groups


def test_groups_of_a_curriculum_have_the_tasks_that_were_solved_at_times() -> None:
    admission = make(max_staleness=0, updates=50, curriculum_half_life=100.0, train_size=3)
    outcomes = [TaskOutcome(0, 0, 20, 0), TaskOutcome(0, 1, 10, 10), TaskOutcome(0, 2, 0, 20)]
    admission.note_outcomes(outcomes)
    tasks = []
    for version in range(1, 40):
        leases = lease_all(admission)
        groups = sorted({lease.key.group for lease in leases})
        for group in groups:
            (task,) = {lease.task_index for lease in leases if lease.key.group == group}
            tasks.append(task)
        admission.hold_until_applied(version, groups)
        admission.free_slots(version)
    assert tasks[2:].count(1) > 0.8 * len(tasks[2:])  # the first two were drawn before


@pytest.mark.parametrize("half_life", [0.0, 100.0])
def test_resumed_group_keeps_the_task_of_its_members(half_life: float) -> None:
    """A curriculum may have been there before, and not be there now."""
    admission = make(curriculum_half_life=half_life, updates=0)
    admission.start(7, [EpisodeKey(7, 0)], updates_remaining=5, tasks={7: 123})
    leases = [lease for lease in lease_all(admission) if lease.key.group == 7]
    assert [lease.key.member for lease in leases] == [1, 2]
    assert {lease.task_index for lease in leases} == {123}


def test_tasks_do_not_depend_on_outcomes_without_a_curriculum() -> None:
    admission = make()
    admission.note_outcomes([TaskOutcome(0, 1, 10, 10)])
    assert {(lease.key.group, lease.task_index) for lease in lease_all(admission)} == {
        (group, task_of_group(0, group, 1000)) for group in range(4)
    }
