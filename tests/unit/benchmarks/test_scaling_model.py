"""The model that benchmarks.scaling asks: where it must agree with arithmetic."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import pytest
import simpy
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.scaling_model import Costs, Machine, Run, Setup, Work

FREE = Costs(**dict.fromkeys(Costs.__dataclass_fields__, 0.0))
STEP = replace(FREE, engine_step=0.01)
WORK = Work(turns=[5], responses=[20], prompt=100)
GENERATION = 5 * 20 * 0.01
"""Seconds of an episode of WORK, however many are under way, if a step takes STEP."""


@given(
    jobs=st.lists(st.tuples(st.integers(0, 50), st.integers(1, 50)), min_size=1, max_size=8),
    cores=st.integers(1, 3),
)
def test_cores_are_shared_equally(jobs: list[tuple[int, int]], cores: int) -> None:
    env = simpy.Environment()
    machine = Machine(env, cores)
    ends = {}

    def job(number: int, begin: float, seconds: float):
        yield env.timeout(begin)
        yield machine.work(seconds)
        ends[number] = env.now

    for number, (begin, seconds) in enumerate(jobs):
        env.process(job(number, begin, seconds))
    env.run()
    assert [ends[number] for number in range(len(jobs))] == pytest.approx(
        _shared_slowly(jobs, cores), abs=1e-6
    )


def _shared_slowly(jobs: list[tuple[int, int]], cores: int) -> list[float]:
    """From one beginning or end to the next, what each job has left."""
    left = [float(seconds) for _, seconds in jobs]
    ends = [0.0] * len(jobs)
    now = 0.0
    while any(left):
        here = [i for i, (begin, _) in enumerate(jobs) if begin <= now + 1e-9 and left[i]]
        rate = min(1.0, cores / len(here)) if here else 1.0
        until = min(
            [left[i] / rate for i in here]
            + [begin - now for begin, _ in jobs if begin > now + 1e-9]
        )
        now += until
        for i in here:
            left[i] -= until * rate
            if left[i] < 1e-9:
                left[i] = 0.0
                ends[i] = now
    return ends


@pytest.mark.slow
def test_an_engine_that_is_full_brings_a_token_of_each_row_in_a_step() -> None:
    costs = replace(STEP, engine_row=0.001)
    work = Work(turns=[10], responses=[3, 20], prompt=0)
    setup = Setup(groups=8, group_size=4, max_staleness=7, places=16)
    found = (Run(costs, work, setup).outcome(20), Run(costs, work, setup).full(200.0))
    rows = (
        16 * 11.5 / 12.5
    )  # a turn of 11.5 tokens comes while a step is under way, and waits for the next one
    assert [outcome.tokens_per_second for outcome in found] == pytest.approx(
        [rows / (0.01 + 0.001 * rows)] * 2, rel=0.02
    )


def test_without_staleness_an_update_is_generation_then_training_then_the_pause() -> None:
    costs = replace(STEP, train_turn=0.01, pause=0.5)
    found = Run(costs, WORK, Setup(groups=2, group_size=4, max_staleness=0, places=8)).outcome(6)
    assert found.seconds_per_update == pytest.approx(GENERATION + 0.01 * 5 * 8 + 0.5)


def test_with_staleness_an_update_takes_what_the_slower_side_takes() -> None:
    costs = replace(STEP, train_turn=0.1)
    found = Run(costs, WORK, Setup(groups=2, group_size=4, max_staleness=1, places=8)).outcome(6)
    assert found.seconds_per_update == pytest.approx(0.1 * 5 * 8)
    assert found.learner_busy == pytest.approx(1.0)


def test_fewer_places_than_episodes_take_their_turns() -> None:
    found = Run(STEP, WORK, Setup(groups=2, group_size=4, max_staleness=0, places=2)).outcome(6)
    assert found.seconds_per_update == pytest.approx(4 * GENERATION)


@pytest.mark.slow
@pytest.mark.parametrize("controllers", [1, 2])
def test_controllers_that_are_too_slow_bound_the_turns(controllers: int) -> None:
    costs = replace(STEP, controller_turn=0.05)
    setup = Setup(
        groups=8, group_size=4, max_staleness=7, places=64, engines=2, controllers=controllers
    )
    assert Run(costs, WORK, setup).outcome(12).turns_per_second == pytest.approx(
        controllers / 0.05, rel=0.02
    )


def test_signals_take_the_controllers_time_away_from_turns() -> None:
    costs = replace(STEP, controller_turn=0.05, controller_token=0.0025)
    setup = Setup(groups=8, group_size=4, max_staleness=7, places=64)
    assert Run(costs, WORK, setup).outcome(12).turns_per_second == pytest.approx(
        1 / (0.05 + 20 * 0.0025), rel=0.05
    )


def test_two_cores_for_all_are_slower_than_a_core_for_each() -> None:
    costs = replace(STEP, train_turn=0.0249, actor_turn=0.005)
    setup = Setup(groups=2, group_size=4, max_staleness=1, places=8)
    alone, shared = (
        Run(costs, WORK, replace(setup, cores=cores)).outcome(8).seconds_per_update
        for cores in (inf, 1)
    )
    assert shared == pytest.approx(
        0.0249 * 40 + 0.005 * 40 + GENERATION, rel=0.05
    )  # one core: the sum of all work
    assert alone < 0.7 * shared
