"""Plans on this machine: what is printed for machines that are not here, and what is refused."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

from config import Config, ConfigError
from config.resolve import resolve
from engine import gpus, launch
from engine.gpus import Gpu
from supervisor.cli.cluster import check_plan
from supervisor.cli.main import main
from supervisor.cluster import planning
from supervisor.cluster.layout import Machines
from supervisor.cluster.memory_budget import GIB
from supervisor.cluster.planning import describe_plan, plan_run

MACHINES = ("1x80gb", "1x80gb-lora", "8x80gb", "8x80gb-8b", "2-nodes")
ENVIRONMENTS = ("alfworld", "webshop", "search")
OTHER_MODELS = [("1x80gb", "Qwen/Qwen3-1.7B"), ("8x80gb", "Qwen/Qwen3-8B")]
"""Models that a recipe's machine holds beside the one that it names."""


def dry_run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What `run.py --dry-run` prints of the GPUs, of a run that it does not refuse."""
    assert main([*arguments, "--dry-run"]) == 0
    return capsys.readouterr().out.partition("# Processes on GPUs")[2]


def assert_holds(printed: str) -> None:
    """A budget is printed, and each GPU of 80 GiB holds what is planned for it."""
    sums = [line.split()[3:] for line in printed.splitlines() if line.startswith("# in all")]
    assert sums and all(float(size) < 80 for sizes in sums for size in sizes)
    assert "weights" in printed and "KV cache" in printed and "tight" not in printed
    assert "planned" not in printed


@pytest.mark.slow
@pytest.mark.parametrize(("environment", "name"), list(itertools.product(ENVIRONMENTS, MACHINES)))
def test_dry_run_recipes_for_gpus_print_a_budget_that_holds(
    capsys: pytest.CaptureFixture[str], environment: str, name: str
) -> None:
    """With the paper's environment and control, on a machine without any GPU."""
    assert_holds(dry_run(capsys, "--recipe", f"{environment},t2po-paper,{name}"))


@pytest.mark.parametrize(("name", "model"), [(name, "") for name in MACHINES] + OTHER_MODELS)
def test_dry_run_recipe_alone_and_with_another_model_holds(
    capsys: pytest.CaptureFixture[str], name: str, model: str
) -> None:
    """As it is, and with the other models that it speaks of."""
    options = ["--recipe", name]
    if model:
        options += ["--model", model]
    assert_holds(dry_run(capsys, *options))


def test_dry_run_prints_comments_that_a_file_of_settings_may_have(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """What is printed is still a file that --config takes."""
    assert main(["--recipe", "8x80gb", "--dry-run"]) == 0
    file = tmp_path / "settings.toml"
    file.write_text(capsys.readouterr().out)
    assert resolve(file) == resolve(None, {"recipe": "8x80gb"})


def test_dry_run_impossible_plan_is_refused_with_setting_and_numbers(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Qwen3-8B's weights and moments do not fit one GPU."""
    assert main(["--recipe", "1x80gb", "--model", "Qwen/Qwen3-8B", "--dry-run"]) == 2
    said = capsys.readouterr().err
    assert re.search(r"learner\.ranks: a rank needs 122\.1 GiB .* GPU 0 has 80\.0 GiB", said)


def test_dry_run_without_gpus_says_nothing_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    """A run that computes on CPUs has no plan."""
    assert dry_run(capsys, "--serial") == "" == dry_run(capsys)


def test_describe_plan_unknown_model_says_that_its_memory_is_not_told() -> None:
    """Its processes are placed in any case."""
    settings = {"model": "somebody/something", "cluster.gpus": "2", "cluster.gpu_memory_gb": "80"}
    lines = describe_plan(resolve(None, settings))
    assert any("none of the known models" in line for line in lines)
    assert any("the learner on GPU 0, engines on GPU 1" in line for line in lines)


def with_gpus(monkeypatch: pytest.MonkeyPatch, count: int, used_gib: int = 0) -> None:
    """Let this machine show GPUs of 80 GiB, and vLLM be that for them."""
    shown = [Gpu("H100", 80 * GIB, used_gib * GIB)] * count
    monkeypatch.setattr(planning, "list_gpus", lambda: shown)
    monkeypatch.setattr(planning, "on_cpu", lambda: False)


def planned(**settings: str) -> Config:
    """Settings of the recipe for eight GPUs; `settings` as section__name."""
    return resolve(
        None,
        {"recipe": "8x80gb"} | {name.replace("__", "."): text for name, text in settings.items()},
    )


def test_plan_run_machine_that_is_as_planned_gets_its_places(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The memory is that of the GPUs that are here."""
    with_gpus(monkeypatch, 8)
    plan = plan_run(planned(), None)
    assert plan is not None and plan.devices.learner == [0, 1, 2, 3]
    assert [engine.gpus for engine in plan.devices.engines] == [[4], [5], [6], [7]]


def test_plan_run_memory_of_others_is_found_before_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The driver's library says what other processes have."""
    with_gpus(monkeypatch, 8, used_gib=30)
    with pytest.raises(ConfigError, match=r"others have 30\.0"):
        plan_run(planned(), None)


def test_plan_run_machine_with_fewer_gpus_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both numbers are said."""
    with_gpus(monkeypatch, 3)
    with pytest.raises(ConfigError, match=r"cluster\.gpus: .* of 8 GPUs, and this one shows 3"):
        plan_run(planned(), None)


def test_plan_run_vllm_for_cpus_is_refused_with_the_extra_to_install() -> None:
    """A plan for GPUs does not start on CPUs by mistake."""
    if not launch.on_cpu():
        pytest.skip("vLLM is installed for GPUs here")
    with pytest.raises(ConfigError, match=r"cluster\.gpus: .* for CPUs; install the extra 'cuda'"):
        plan_run(planned(), None)


def test_plan_run_on_cpus_without_a_plan_is_none() -> None:
    """A run that says nothing of GPUs computes on what there is."""
    if launch.on_cpu() or not gpus.list_gpus():
        assert plan_run(resolve(), None) is None


def test_plan_run_learner_without_a_launch_command_is_refused() -> None:
    """A machine of its own is nothing that a run on one machine can have."""
    with pytest.raises(ConfigError, match=r"cluster\.learner_gpus: .*run\.py slurm"):
        plan_run(resolve(None, {"recipe": "2-nodes"}), None)


def test_plan_run_unknown_model_that_shares_its_gpu_needs_a_word(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Once the model is here, and its memory is still not known."""
    with_gpus(monkeypatch, 1)
    (tmp_path / "config.json").write_text('{"n_embd": 768}')
    config = resolve(None, {"model": str(tmp_path)})
    assert plan_run(config, None) is not None
    with pytest.raises(ConfigError, match=r"engine\.kv_cache_gb: "):
        plan_run(config, tmp_path)


def test_check_plan_counts_the_machines_that_a_cluster_assigns() -> None:
    """The learner's machine is another one, and each shard's has its engines."""
    machines = Machines(shards=1, actor_nodes=1, actors=8, learner=1)
    settings = {"recipe": "2-nodes", "engine.count": "16"}
    check_plan(settings, machines)
    with pytest.raises(ConfigError, match=r"engine\.count: .* 9 engines"):
        check_plan(settings | {"engine.count": "17"}, machines)
