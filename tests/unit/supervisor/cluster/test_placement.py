"""Placement: any demand gets GPUs of its own, or is refused, and what the user chose holds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config import ConfigError
from supervisor.cluster.placement import Place, Placement, Workers, place_workers


@st.composite
def demands(draw: Callable) -> tuple[Workers, list[int]]:
    """Workers on up to three machines, and how many GPUs each machine has."""
    machines = draw(st.integers(1, 3))
    on = st.lists(st.integers(0, machines - 1), max_size=9).map(tuple)
    workers = Workers(draw(on), draw(on), draw(st.integers(1, 4)))
    return workers, draw(st.lists(st.integers(0, 9), min_size=machines, max_size=machines))


def place_or_refuse(demand: tuple[Workers, list[int]]) -> Placement | None:
    """Return the placement of a demand; None if it is refused."""
    try:
        return place_workers(*demand)
    except ConfigError:
        return None


def needs(workers: Workers, machine: int) -> int:
    """Count the GPUs that a machine has to have for all to have their own."""
    return len(workers.ranks_on(machine)) + workers.tensor_parallel * len(
        workers.engines_on(machine)
    )


@given(demands())
def test_place_workers_any_demand_gives_each_worker_gpus_of_its_machine(
    demand: tuple[Workers, list[int]],
) -> None:
    """Every worker is placed, in range, and an engine has as many different GPUs as it asks for."""
    placement = place_or_refuse(demand)
    if placement is None:
        return
    workers, counts = demand
    assert len(placement.engines) == len(workers.engine_machines)
    assert len(placement.ranks) == len(workers.rank_machines)
    for machine, gpus in zip(workers.engine_machines, placement.engines, strict=True):
        assert len(set(gpus)) == workers.tensor_parallel
        assert all(0 <= gpu < counts[machine] for gpu in gpus)
    for machine, gpu in zip(workers.rank_machines, placement.ranks, strict=True):
        assert 0 <= gpu < counts[machine]


@given(demands())
def test_place_workers_enough_gpus_shares_none(demand: tuple[Workers, list[int]]) -> None:
    """No GPU has two tenants, unless it is the only one of its machine."""
    placement = place_or_refuse(demand)
    if placement is None:
        return
    for place, tenants in placement.tenants().items():
        assert not tenants.is_shared or demand[1][place.machine] == 1


@given(demands())
def test_place_workers_refuses_only_what_does_not_fit(demand: tuple[Workers, list[int]]) -> None:
    """A demand is refused where a machine has too few GPUs, and nowhere else."""
    workers, counts = demand
    fits = all(needs(workers, machine) <= count for machine, count in enumerate(counts))
    if fits:
        assert place_or_refuse(demand) is not None
    if any(needs(workers, machine) > max(count, 2) for machine, count in enumerate(counts)):
        assert place_or_refuse(demand) is None


@given(demands())
def test_place_workers_same_demand_gives_same_placement(demand: tuple[Workers, list[int]]) -> None:
    """Placement depends on its arguments alone."""
    assert place_or_refuse(demand) == place_or_refuse(demand)


@given(demands())
def test_placement_tenants_agree_with_gpus_of_workers(demand: tuple[Workers, list[int]]) -> None:
    """Seen from GPUs, a placement says the same as seen from workers."""
    placement = place_or_refuse(demand)
    if placement is None:
        return
    workers = demand[0]
    by_gpu = placement.tenants()
    for number, gpus in enumerate(placement.engines):
        for gpu in gpus:
            assert number in by_gpu[Place(workers.engine_machines[number], gpu)].engines
    for number, gpu in enumerate(placement.ranks):
        assert number in by_gpu[Place(workers.rank_machines[number], gpu)].ranks
    assert sum(len(tenants.engines) for tenants in by_gpu.values()) == sum(
        map(len, placement.engines)
    )
    assert sum(len(tenants.ranks) for tenants in by_gpu.values()) == len(placement.ranks)


def test_place_workers_one_gpu_is_shared() -> None:
    """On one GPU, the learner and an engine are together."""
    placement = place_workers(Workers((0,), (0,)), [1])
    assert placement.engines == ((0,),) and placement.ranks == (0,)


def test_place_workers_eight_gpus_have_ranks_first_and_engines_next() -> None:
    """Four ranks and two engines of two workers fill eight GPUs in this order."""
    placement = place_workers(Workers((0, 0), (0, 0, 0, 0), 2), [8])
    assert placement.ranks == (0, 1, 2, 3)
    assert placement.engines == ((4, 5), (6, 7))


def test_place_workers_two_machines_are_counted_apart() -> None:
    """Engines of the first machine and ranks of the second both begin with GPU 0."""
    placement = place_workers(Workers((0,) * 8, (1,) * 8), [8, 8])
    assert placement.ranks == tuple(range(8))
    assert placement.engines == tuple((gpu,) for gpu in range(8))


def test_place_workers_choice_of_user_holds_and_others_get_the_rest() -> None:
    """What is chosen for engines is not given to ranks."""
    placement = place_workers(Workers((0, 0), (0, 0)), [4], engine_gpus=[0, 2])
    assert placement.engines == ((0,), (2,)) and placement.ranks == (1, 3)


def test_place_workers_choice_of_user_may_share() -> None:
    """Whoever names the same GPU for an engine and a rank gets it."""
    placement = place_workers(Workers((0, 0), (0, 0)), [2], [0, 1], [0, 1])
    assert [tenants.is_shared for tenants in placement.tenants().values()] == [True, True]


@pytest.mark.parametrize(
    ("workers", "counts", "chosen", "said"),
    [
        (Workers((0,) * 5, (0,) * 4), [8], {}, r"engine\.count: 4 ranks .* 5 engines .* need 9"),
        (Workers((0, 0), (0,)), [1], {}, r"engine\.count: .* need 3, and machine 0 shows 1"),
        (Workers((0,), (0,), 2), [1], {}, r"engine\.count: .* of 2 GPUs need 3"),
        (Workers((0,), (0,)), [2], {"engine_gpus": [2]}, r"engine\.devices: there is no GPU 2"),
        (Workers((0,), (0,)), [2], {"rank_gpus": [5]}, r"learner\.devices: there is no GPU 5"),
        (Workers((0,), (0,)), [2], {"engine_gpus": [0, 1]}, r"engine\.devices: 2 GPUs .* 1 are"),
        (Workers((0,), (0, 0)), [2], {"rank_gpus": [1, 1]}, r"learner\.devices: GPU 1 .* several"),
        (Workers((0,), (), 2), [2], {"engine_gpus": [1, 1]}, r"engine\.devices: .* same GPU twice"),
    ],
)
def test_place_workers_impossible_demand_names_setting_and_numbers(
    workers: Workers, counts: list[int], chosen: dict[str, list[int]], said: str
) -> None:
    """What cannot be placed is refused with the setting and the numbers."""
    with pytest.raises(ConfigError, match=said):
        place_workers(workers, counts, **chosen)
