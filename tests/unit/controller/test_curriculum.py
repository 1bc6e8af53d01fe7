"""A curriculum: tasks are drawn by what became of them lately, and none is shut out."""

from __future__ import annotations

import random
from collections import Counter, deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.curriculum import (
    Curriculum,
    TaskRecord,
    add_outcome,
    draw_task,
    fade_record,
)
from protocol.messages import TaskOutcome

HALF_LIFE = 50.0
counts = st.integers(0, 20)
records = st.dictionaries(
    st.integers(0, 30), st.builds(TaskRecord, st.floats(0, 50), st.floats(0, 50), counts)
)
outcomes = st.lists(st.builds(TaskOutcome, counts, st.just(3), counts, counts), min_size=1)


def draw_many(known: dict[int, TaskRecord], size: int, draws: int = 2000) -> Counter[int]:
    rng = random.Random(0)
    return Counter(draw_task(rng, known, 0, size, HALF_LIFE) for _ in range(draws))


@given(records, st.integers(1, 20), st.integers(0, 100), st.integers())
def test_draw_task_is_one_there_is_and_the_same_for_the_same_records(
    known: dict[int, TaskRecord], size: int, group: int, seed: int
) -> None:
    task, again = (
        draw_task(random.Random(seed), order, group, size, HALF_LIFE)
        for order in (known, dict(reversed(known.items())))
    )
    assert 0 <= task < size
    assert task == again


@given(outcomes, st.randoms())
def test_record_is_the_same_in_whatever_order_outcomes_come(
    played: list[TaskOutcome], rng: random.Random
) -> None:
    shuffled = list(played)
    rng.shuffle(shuffled)
    sums = []
    for order in (played, shuffled):
        record = TaskRecord(0, 0, 0)
        for outcome in order:
            record = add_outcome(record, outcome, HALF_LIFE)
        sums.append((record.solved, record.failed, record.success))
    assert sums[0] == pytest.approx(sums[1])
    assert 0 < sums[0][2] < 1


@given(st.floats(0, 50), st.floats(0, 50), counts, counts, counts)
def test_record_fades_by_groups_whatever_the_steps(
    solved: float, failed: float, begin: int, first: int, second: int
) -> None:
    record = TaskRecord(solved, failed, begin)
    at_once = fade_record(record, begin + first + second, HALF_LIFE)
    stepwise = fade_record(
        fade_record(record, begin + first, HALF_LIFE), begin + first + second, HALF_LIFE
    )
    assert tuple(map(float, (at_once.solved, at_once.failed))) == pytest.approx(
        (stepwise.solved, stepwise.failed)
    )
    assert at_once.solved <= solved


def test_what_was_seen_a_half_life_ago_counts_half() -> None:
    assert fade_record(TaskRecord(4, 2, 10), 60, HALF_LIFE) == TaskRecord(2, 1, 60)
    assert fade_record(TaskRecord(4, 2, 10), 5, HALF_LIFE) == TaskRecord(4, 2, 10)


def test_tasks_solved_at_times_are_drawn_most_and_none_is_shut_out() -> None:
    known = {
        0: TaskRecord(40, 0, 0),
        1: TaskRecord(20, 20, 0),
        2: TaskRecord(0, 40, 0),
        3: TaskRecord(4, 0, 0),
    }
    drawn = draw_many(known, size=4)
    assert drawn[1] > 0.8 * sum(drawn.values())
    assert drawn[3] > drawn[0]
    unlike = draw_many({0: TaskRecord(8, 0, 0), 1: TaskRecord(4, 4, 0)}, size=200)
    assert len(unlike) > 150
    assert unlike[1] > 10 * unlike[0]


def simulate_informative_share(half_life: float) -> float:
    """Play 1,200 groups of 8; a third each of 300 tasks is solved never, at times, and always.

    Outcomes come 12 groups late, as with slots. Returns the share of groups that some, but not all,
    members solve.
    """
    rng = random.Random(0)
    chances = [rng.choice([0.0, 0.5, 1.0]) for _ in range(300)]
    curriculum = Curriculum(half_life)
    late: deque[TaskOutcome] = deque()
    informative = 0
    for group in range(1200):
        curriculum.admit(0, group, len(chances))
        task = curriculum.task_of(group)
        if task is None:
            task = rng.randrange(len(chances))
        solved = sum(rng.random() < chances[task] for _ in range(8))
        informative += 0 < solved < 8
        late.append(TaskOutcome(group, task, solved, 8 - solved))
        if len(late) > 12:
            curriculum.note([late.popleft()])
    return informative / 1200


def test_groups_of_a_curriculum_are_solved_by_some_members_more_often() -> None:
    """The figures of docs/reference/algorithms.md."""
    assert simulate_informative_share(0) == pytest.approx(0.30, abs=0.01)
    assert simulate_informative_share(80) == pytest.approx(0.53, abs=0.01)


def test_tasks_of_which_nothing_is_known_are_drawn_alike() -> None:
    drawn = draw_many({}, size=10)
    assert min(drawn[task] for task in range(10)) > 0.7 * max(drawn.values())


def test_curriculum_forgets_what_hardly_counts_any_more() -> None:
    curriculum = Curriculum(HALF_LIFE)
    curriculum.note([TaskOutcome(0, 7, 1, 1)])
    curriculum.note([TaskOutcome(100, 8, 1, 1)])
    assert set(curriculum.records) == {7, 8}
    curriculum.note([TaskOutcome(1000, 9, 1, 1)])
    assert set(curriculum.records) == {9}


def test_curriculum_of_a_checkpoint_goes_on_as_it_was() -> None:
    first, second = Curriculum(HALF_LIFE), Curriculum(HALF_LIFE)
    first.note([TaskOutcome(0, 7, 3, 1), TaskOutcome(1, 5, 0, 4)])
    second.restore(first.state())
    assert first.records == second.records
    for group in range(20):
        first.admit(0, group, 10)
        second.admit(0, group, 10)
    assert [first.task_of(group) for group in range(20)] == [
        second.task_of(group) for group in range(20)
    ]


def test_gauges_tell_what_the_curriculum_knows_of_admitted_groups() -> None:
    curriculum = Curriculum(HALF_LIFE)
    assert curriculum.gauges()["curriculum_success"] is None
    curriculum.note([TaskOutcome(0, 0, 8, 0)])
    curriculum.admit(0, group=0, size=2, task=0)
    curriculum.admit(0, group=1, size=2, task=1)
    assert curriculum.gauges() == {
        "curriculum_tasks": 1,
        "curriculum_known_share": 0.5,
        "curriculum_success": pytest.approx((0.9 + 0.5) / 2),
    }
    curriculum.forget_groups([0])
    assert curriculum.gauges()["curriculum_known_share"] == 0
    assert Curriculum(0).gauges() == {}
