"""Groups, batches and the log of episodes."""

from __future__ import annotations

import random
from collections import Counter

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from config import LearnerSection
from controller.responses import EMPTY_RESPONSE
from learner.data.drop_ledger import FIRST_EPISODES, NothingPlayable
from learner.data.groups import GroupBuffer
from protocol.messages import DropReason, EpisodeKey, TaskOutcome, Trajectory
from tests.fixtures.learner import fill, make_algorithm, random_turn, trajectory
from tests.fixtures.messages import make_turn


def play(buffer: GroupBuffer, arrivals: list[Trajectory], groups_per_batch: int) -> Counter:
    """Take in and train on all arrivals as far as that goes.

    Returns what updates tell of the dropped ones.
    """
    told = Counter()
    for arrival in arrivals:
        buffer.add(arrival)
        buffer.collect_complete()
        while buffer.pop_batch(groups_per_batch) is not None:
            told += buffer.pop_closed_drops()
    return told


def build_failed(number: int, evaluation: bool) -> Trajectory:
    """Episode `number`, in groups of four if it is one of training."""
    key = (0, number) if evaluation else divmod(number, 4)
    return msgspec.structs.replace(
        trajectory(*key, DropReason.ENV_ERROR, evaluation),
        detail="KeyError: 'x' (game.py:7 in step)",
    )


@pytest.mark.parametrize("evaluation", [False, True])
def test_environment_whose_first_episodes_all_fail_ends_the_run_with_that_reason(
    evaluation: bool,
):
    """An environment none of whose first episodes can be played ends the run with that reason."""
    buffer = GroupBuffer(group_size=4)
    for number in range(FIRST_EPISODES):
        buffer.check_playable()
        buffer.add(build_failed(number, evaluation))
    with pytest.raises(NothingPlayable, match=r"64 env_error.*KeyError: 'x' \(game.py:7 in step\)"):
        buffer.check_playable()


@given(st.integers(0, FIRST_EPISODES - 1), st.booleans())
def test_one_played_episode_among_the_first_lets_the_run_go_on(played: int, evaluation: bool):
    """One of the first episodes that is played lets the run go on, however many fail before."""
    buffer = GroupBuffer(group_size=4)
    for number in range(3 * FIRST_EPISODES):
        if number != played:
            buffer.add(build_failed(number, evaluation))
    buffer.check_playable()


def test_groups_leave_in_order_of_admission_whatever_the_order_of_arrival():
    buffer = GroupBuffer(group_size=2)
    for group in (2, 1, 0):
        fill(buffer, group)
    buffer.collect_complete()
    assert buffer.pop_batch(2)[0] == [0, 1]


def test_kept_tokens_of_what_is_dropped_are_counted_once():
    """Kept tokens of what is dropped are counted once.

    They are those of an episode that failed after a turn, of the only one left of its group, and of
    what waits when the run ends; rejected tokens are counted elsewhere.
    """
    seven, two = (
        msgspec.structs.replace(EMPTY_RESPONSE, tokens=bytes(4 * count)) for count in (7, 2)
    )
    turn = make_turn(seven, rejected=[two])
    buffer = GroupBuffer(group_size=2)
    for group, member, dropped in (
        (0, 0, DropReason.ENV_ERROR),
        (0, 1, None),
        (1, 0, None),
        (1, 1, None),
        (2, 0, None),
    ):
        buffer.add(msgspec.structs.replace(trajectory(group, member, dropped), turns=[turn]))
    buffer.collect_complete()
    assert buffer.pop_closed_drops()["wasted_dropped"] == 14
    buffer.pop_batch(1)
    assert buffer.cancel_remaining()["wasted_dropped"] == 7


def test_a_batch_waits_for_its_first_group_even_if_later_ones_are_complete():
    buffer = GroupBuffer(group_size=2)
    fill(buffer, 1)
    buffer.collect_complete()
    assert buffer.pop_batch(1) is None


def test_an_episode_that_arrives_twice_counts_once():
    buffer = GroupBuffer(group_size=2)
    assert buffer.add(trajectory(0, 0))
    assert not buffer.add(trajectory(0, 0, attempt=1))
    fill(buffer, 0)
    buffer.collect_complete()
    buffer.pop_batch(1)
    assert not buffer.add(trajectory(0, 1)), "known although its group has left"


def test_played_episode_takes_the_place_of_its_cancellation():
    """An episode that was played to its end takes the place of the word that it was canceled."""
    buffer = GroupBuffer(group_size=2)
    assert buffer.add(trajectory(0, 0, DropReason.CANCELED)) and buffer.add(trajectory(0, 0))
    assert not buffer.add(trajectory(0, 0)) and not buffer.add(
        trajectory(0, 0, DropReason.CANCELED)
    )
    fill(buffer, 0)
    buffer.collect_complete()
    assert [len(group) for group in buffer.pop_batch(1)[1]] == [2] and not buffer.pop_closed_drops()


def test_groups_whose_returns_are_equal_are_left_out_where_that_is_asked_for():
    buffer = GroupBuffer(group_size=2, filter_groups=True)
    unfiltered = GroupBuffer(group_size=2)
    for group, rewards in enumerate([(0.0, 0.0), (0.0, 10.0), (10.0, 10.0)]):
        for member, reward in enumerate(rewards):
            turn = make_turn(EMPTY_RESPONSE, reward=reward)
            played = msgspec.structs.replace(trajectory(group, member), turns=[turn])
            buffer.add(played)
            unfiltered.add(played)
    assert buffer.collect_complete() == [0, 2] and buffer.pop_batch(1)[0] == [1]
    assert buffer.pop_closed_drops() == {"dropped_uninformative": 4}
    assert unfiltered.collect_complete() == []
    assert unfiltered.pop_batch(3).groups == [0, 1, 2]


def test_a_group_with_dropped_members_is_trained_on_while_two_are_left():
    buffer = GroupBuffer(group_size=3)
    fill(buffer, 0, dropped=1)
    assert buffer.collect_complete() == []
    numbers, groups = buffer.pop_batch(1)
    assert numbers == [0] and len(groups[0]) == 2


def test_a_group_with_fewer_than_two_members_is_dropped_at_once():
    buffer = GroupBuffer(group_size=3)
    fill(buffer, 0, dropped=2)
    assert buffer.collect_complete() == [0]
    assert buffer.pop_closed_drops() == {"dropped_env_error": 2, "dropped_canceled": 1}


def test_of_each_reason_to_fail_what_the_first_episode_says_is_kept_on_a_line():
    buffer = GroupBuffer(group_size=4)
    said = [
        ("canceled", "over"),
        ("env_error", "no\nroom"),
        ("env_error", "others"),
        ("actor_lost", 1000 * "a"),
    ]
    for member, (reason, detail) in enumerate(said):
        buffer.add(
            msgspec.structs.replace(trajectory(0, member, DropReason(reason)), detail=detail)
        )
    failures = buffer.ledger.failures
    assert failures.keys() == {"env_error", "actor_lost"}
    assert failures["env_error"] == f"{EpisodeKey(0, 1).id}: no room"
    assert len(failures["actor_lost"]) < 400


def test_an_evaluation_is_complete_when_all_its_episodes_are_there():
    buffer = GroupBuffer(group_size=2)
    buffer.add(trajectory(0, 1, evaluation=True))
    assert buffer.pop_evaluation(0, 2) is None
    buffer.add(trajectory(0, 0, evaluation=True))
    assert [t.key.member for t in buffer.pop_evaluation(0, 2)] == [0, 1]


@given(st.integers(1, 4), st.integers(2, 4), st.integers(0, 6), st.randoms(), st.data())
def test_invariant_3_every_episode_leaves_exactly_once(
    groups_per_batch, group_size, groups, rng: random.Random, data
):
    """Trained on, or dropped with one reason, in any order of arrival and with any duplicates."""
    buffer = GroupBuffer(group_size)
    reasons = st.sampled_from([None, None, *DropReason])
    sent = [trajectory(g, m, data.draw(reasons)) for g in range(groups) for m in range(group_size)]
    arrivals = sent + [t for t in sent if rng.random() < 0.3]
    rng.shuffle(arrivals)
    trained = []
    dropped = Counter()
    for t in arrivals:
        buffer.add(t)
        buffer.collect_complete()
        for batch in iter(lambda: buffer.pop_batch(groups_per_batch), None):
            trained += [t.key for group in batch[1] for t in group]
            dropped += buffer.pop_closed_drops()
    dropped += buffer.cancel_remaining()
    assert len(trained) == len(set(trained))
    assert len(trained) + dropped.total() == len(sent)


@given(st.integers(1, 3), st.integers(2, 3), st.integers(1, 6), st.integers(0, 20), st.data())
def test_what_is_dropped_is_counted_once_whenever_a_run_is_resumed(
    groups_per_batch, group_size, groups, stop, data
):
    """A dropped episode is counted once, whenever a run is resumed.

    The resumed one takes in again all groups that the checkpoint does not have, as from the log.
    """
    reasons = st.sampled_from([None, *DropReason])
    sent = [trajectory(g, m, data.draw(reasons)) for g in range(groups) for m in range(group_size)]
    buffer = GroupBuffer(group_size)
    dropped = play(buffer, sent[:stop], groups_per_batch)
    resumed = GroupBuffer(group_size)
    resumed.resume(buffer.closed, buffer.closed_drops())
    dropped += play(resumed, sent, groups_per_batch) + resumed.cancel_remaining()
    uninterrupted = GroupBuffer(group_size)
    assert dropped == (
        play(uninterrupted, sent, groups_per_batch) + uninterrupted.cancel_remaining()
    )


@pytest.mark.parametrize(
    ("algorithm", "rewards", "dropped"),
    [
        ("grpo", ([0.1, 0.2, 0.3], [0.3, 0.2, 0.1]), True),  # equal but for the last bit
        ("gigpo", ([0.1, 0.2, 0.3], [0.3, 0.2, 0.1]), False),  # but not what came of each state
        (
            "gigpo",
            ([0.0, 10.0], [0.0, 0.0, 0.0, 10.0]),
            False,
        ),  # the same state, and the goal later
        ("grpo", ([0.0, 10.0], [0.0, 0.0, 0.0, 10.0]), True),
        ("gigpo", ([0.0, 10.0], [0.0, 10.0]), True),
    ],
)
def test_groups_are_filtered_by_what_the_algorithm_compares(
    algorithm: str, rewards: tuple[list[float], ...], dropped: bool
):
    buffer = GroupBuffer(2, True, LearnerSection(algorithm=make_algorithm(algorithm)))
    for member, own in enumerate(rewards):
        turns = [
            msgspec.structs.replace(
                random_turn(np.random.default_rng(0), 300),
                reward=reward,
                valid=bool(k),
                anchor=f"state {k}",
            )
            for k, reward in enumerate(own)
        ]
        buffer.add(Trajectory(EpisodeKey(0, member), 0, 0, "t", "t", True, turns))
    assert buffer.collect_complete() == ([0] if dropped else [])


def test_batch_that_does_not_come_names_the_group_and_the_missing_episodes() -> None:
    """A batch that does not come names the group and the episodes that are missing."""
    buffer = GroupBuffer(4)
    for key in ((0, 0), (0, 1), (0, 2), (0, 3), (1, 2)):
        buffer.add(trajectory(*key))
    buffer.collect_complete()
    assert buffer.describe_wait(update=7, size=2) == (
        "2 groups for update 7, of which 1 are complete: group 1 lacks 3 of its 4 episodes (0, "
        "1, 3)"
    )


def test_many_missing_episodes_are_counted() -> None:
    assert (
        GroupBuffer(64)
        .describe_wait(update=1, size=1)
        .endswith("group 0 lacks 64 of its 64 episodes (0, 1, 2, 3, 4 and 59 more)")
    )


def played_of(group: int, member: int, task: int, success: bool = False) -> Trajectory:
    return msgspec.structs.replace(trajectory(group, member), task_index=task, success=success)


def test_outcomes_are_told_once_of_groups_that_are_trained_on_or_dropped() -> None:
    buffer = GroupBuffer(group_size=3)
    for member in range(3):
        buffer.add(played_of(0, member, 17, success=member == 0))
        buffer.add(played_of(1, member, 5))
    buffer.add(played_of(2, 0, 8, success=True))
    for member in (1, 2):
        buffer.add(trajectory(2, member, DropReason.ENV_ERROR))
    assert buffer.collect_complete() == [2]
    assert buffer.pop_outcomes() == [TaskOutcome(2, 8, 1, 0)]
    buffer.pop_batch(2)
    assert buffer.pop_outcomes() == [TaskOutcome(0, 17, 1, 2), TaskOutcome(1, 5, 0, 3)]
    assert buffer.pop_outcomes() == []


def test_episodes_of_another_task_than_their_group_are_left_out() -> None:
    """One may be late from before a resume that has drawn another task."""
    buffer = GroupBuffer(group_size=3)
    for member, task in enumerate((4, 9, 9)):
        buffer.add(played_of(0, member, task))
    assert buffer.collect_complete() == []
    (members,) = buffer.pop_batch(1).trajectories
    assert [episode.key.member for episode in members] == [1, 2]
    assert buffer.pop_closed_drops()["dropped_canceled"] == 1


def test_tasks_of_unfinished_groups_are_those_of_their_played_episodes() -> None:
    buffer = GroupBuffer(group_size=2)
    buffer.add(played_of(0, 0, 17))
    buffer.add(played_of(0, 1, 17))
    buffer.collect_complete()
    buffer.add(played_of(1, 1, 4))
    buffer.add(trajectory(2, 0, DropReason.ACTOR_LOST))
    assert buffer.unconsumed_tasks() == {0: 17, 1: 4}
