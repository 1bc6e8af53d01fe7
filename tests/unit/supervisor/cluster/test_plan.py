"""Plans: where processes are by the settings, and what each of them is told."""

from __future__ import annotations

import pytest

from config import Config, ConfigError, EngineDevice
from config.resolve import resolve
from engine.gpus import Gpu
from supervisor.cluster.gpu_budget import GIB
from supervisor.cluster.placement import Workers
from supervisor.cluster.plan import (
    SHARED_FRACTION,
    Plan,
    check_memory_is_known,
    check_sending,
    machines_of,
    make_plan,
    rank_machines,
    workers_of,
)
from supervisor.cluster.plan_table import format_numbers, format_plan
from tests.fixtures.shapes import shape_of

QWEN3 = "Qwen/Qwen3-"

H100 = Gpu("H100", 80 * GIB)


def settings(**changes: str) -> Config:
    """Settings of Qwen3-0.6B; `changes` as section__name."""
    usual = {"model": "Qwen/Qwen3-0.6B", "learner.precision": "bfloat16"}
    return resolve(
        None, usual | {name.replace("__", "."): value for name, value in changes.items()}
    )


def plan_of(config: Config, shown: list[Gpu]) -> Plan:
    """The plan of a run on a machine that shows these GPUs."""
    return make_plan(
        config, machines_of(config, shown), shape_of(config.model.name.removeprefix(QWEN3))
    )


def test_workers_of_shards_on_machines_deal_engines_out_in_turn() -> None:
    """Engine n belongs to shard n modulo their number, and is where that is."""
    config = settings(
        cluster__shards="3",
        cluster__shard_hosts="10.0.0.2,10.0.0.3",
        cluster__shard_launch="srun",
        engine__count="5",
        cluster__learner_gpus="4",
        learner__ranks="4",
    )
    assert workers_of(config) == Workers((0, 1, 2, 0, 1), (3, 3, 3, 3))


def test_workers_of_shards_on_one_machine_are_all_there() -> None:
    """Shards without addresses are processes of the first machine."""
    config = settings(cluster__shards="2", engine__count="4")
    assert workers_of(config) == Workers((0, 0, 0, 0), (0,))


def test_workers_of_engines_elsewhere_take_no_gpu() -> None:
    """Engines that run already have their GPUs."""
    assert workers_of(settings(engine__urls="http://10.0.0.9:8000")) == Workers((), (0,))


def test_machines_of_settings_speak_of_machines_that_are_not_here() -> None:
    """The learner's machine may have another number of GPUs than the first."""
    config = settings(
        cluster__gpus="8",
        cluster__learner_gpus="4",
        cluster__gpu_memory_gb="40",
        learner__ranks="4",
    )
    machines = machines_of(config, [])
    assert [len(gpus) for gpus in machines] == [8, 4]
    assert {gpu.memory_bytes for gpus in machines for gpu in gpus} == {40 * GIB}


@pytest.mark.parametrize(
    ("changed", "machines"),
    [
        ({}, (0, 0, 0, 0)),
        ({"cluster__learner_launch": "srun"}, (1, 1, 1, 1)),
        ({"cluster__learner_launch": "srun", "cluster__learner_machines": "2"}, (1, 1, 2, 2)),
        (
            {
                "cluster__learner_launch": "srun",
                "cluster__learner_machines": "4",
                "cluster__shard_hosts": "10.0.0.2",
            },
            (2, 3, 4, 5),
        ),
    ],
)
def test_rank_machines_come_after_those_of_shards_equally_full(
    changed: dict[str, str], machines: tuple[int, ...]
) -> None:
    assert rank_machines(settings(learner__ranks="4", **changed)) == machines


def test_make_plan_ranks_on_several_machines_count_gpus_on_each() -> None:
    """Each rank has the number of its GPU on its own machine."""
    config = settings(
        learner__ranks="4", cluster__learner_launch="srun", cluster__learner_machines="2"
    )
    assert plan_of(config, [H100] * 2).devices.learner == [0, 1, 0, 1]


def test_machines_of_nothing_said_are_as_this_one() -> None:
    """What this machine shows is taken to be what others have, too."""
    config = settings(cluster__learner_launch="srun")
    assert machines_of(config, [H100, H100]) == [[H100, H100], [H100, H100]]
    assert machines_of(config, []) == []


def test_machines_of_gpus_without_memory_are_refused() -> None:
    """Nobody can plan for GPUs of which nobody says what they have."""
    with pytest.raises(ConfigError, match=r"cluster\.gpu_memory_gb: .* such as 80"):
        machines_of(settings(cluster__gpus="8"), [])


def test_make_plan_tells_processes_their_gpus() -> None:
    """Ranks first, engines next; an engine with its own GPU gets a share of its memory."""
    devices = plan_of(settings(engine__count="2", learner__ranks="2"), [H100] * 4).devices
    assert devices.learner == [0, 1]
    assert devices.engines == [EngineDevice(gpus=[gpu], memory_fraction=0.9) for gpu in (2, 3)]
    assert devices.sequences == 64 / 2 and not devices.sleeps  # actors, over the engines


def test_make_plan_engine_that_shares_its_gpu_is_told_bytes() -> None:
    """The share of memory, which vLLM wants free at its start, is then a small one."""
    plan = plan_of(settings(), [H100])
    (engine,) = plan.devices.engines
    assert engine.kv_cache_bytes == plan.budgets[0].kv_cache_bytes > GIB
    assert engine.memory_fraction == SHARED_FRACTION


def test_make_plan_devices_that_are_no_numbers_are_refused() -> None:
    """An UUID is for CUDA_VISIBLE_DEVICES."""
    with pytest.raises(ConfigError, match=r"engine\.devices: 'GPU-ab' is no number"):
        plan_of(settings(engine__devices="GPU-ab"), [H100])


def test_make_plan_sleep_always_holds_where_nothing_is_shared() -> None:
    """Whoever asks for it gets it."""
    assert plan_of(settings(engine__sleep="always"), [H100] * 2).devices.sleeps


def test_make_plan_unknown_shape_places_and_tells_no_memory() -> None:
    """Processes have their GPUs; a shared one needs the user's word for its KV cache."""
    apart = make_plan(settings(), [[H100, H100]], None)
    assert apart.budgets == [] and apart.devices.learner == [0]
    check_memory_is_known(settings(), apart)
    together = make_plan(settings(), [[H100]], None)
    with pytest.raises(ConfigError, match=r"engine\.kv_cache_gb: "):
        check_memory_is_known(settings(), together)
    given = settings(engine__kv_cache_gb="4")
    plan = make_plan(given, [[H100]], None)
    check_memory_is_known(given, plan)
    assert plan.devices.engines == [
        EngineDevice(gpus=[0], memory_fraction=SHARED_FRACTION, kv_cache_bytes=4 * GIB)
    ]


def test_check_sending_over_nccl_takes_a_gpu_each() -> None:
    """NCCL refuses two ranks on one device."""
    config = settings(engine__weights="nccl")
    check_sending(config, plan_of(config, [H100] * 2))
    with pytest.raises(ConfigError, match=r"engine\.weights: nccl .* leave it at file"):
        check_sending(config, plan_of(config, [H100]))


def test_format_plan_has_a_column_for_each_kind_of_gpu_and_names_idle_ones() -> None:
    """GPUs with the same on them share a column; sums are those of the rows."""
    config = settings(engine__count="3", learner__ranks="2", engine__max_model_len="4096")
    plan = plan_of(config, [H100] * 8)
    lines = format_plan(config, plan, [8], shape_of(config.model.name.removeprefix(QWEN3)))
    (titles,) = [line for line in lines if "GPU 0-1: learner" in line]
    assert "GPU 2-4: engine" in titles
    rows = {line[:16].strip(): line[16:].split() for line in lines}
    assert rows["weights"] == ["1.1", "1.1"] and rows["optimizer"] == ["2.2", "-"]
    engine = [float(row[1]) for name, row in rows.items() if name in PARTS and row[1] != "-"]
    assert float(rows["in all"][1]) == pytest.approx(sum(engine), abs=0.3)
    assert "Nothing is on GPU 5-7." in lines


PARTS = ("weights", "activations", "head", "runtime", "KV cache")


def test_format_plan_says_that_a_gpu_is_shared_by_turns() -> None:
    """The sizes of both times are said."""
    config = settings(
        model="Qwen/Qwen3-4B",
        learner__gradient_checkpointing="true",
        engine__max_model_len="4096",
    )
    lines = format_plan(config, plan_of(config, [H100]), [1], shape_of("4B"))
    assert any("shared by turns: the engine sleeps while an update is computed" in x for x in lines)


def test_format_plan_unknown_shape_names_places_alone() -> None:
    """Where each process is is known in any case."""
    plan = make_plan(settings(), [[H100, H100]], None)
    (line,) = format_plan(settings(), plan, [2], None)
    assert "the learner on GPU 0, engines on GPU 1" in line


def test_format_numbers_joins_those_that_follow_each_other() -> None:
    """Ranges are short."""
    assert format_numbers([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"
