"""Modules that run on some of a machine's GPUs, whatever the machine shows."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from subprocess import CompletedProcess

import msgspec
import pytest

from config import Devices, EngineDevice
from engine.launch import EngineCommand
from supervisor.on_devices import choose_visible, on_devices
from supervisor.process import ROOT, python_module
from supervisor.run import engine_arguments, learner_arguments
from tests.fixtures.learner import job_in, small_config


@pytest.mark.parametrize(
    ("gpus", "shown", "visible"),
    [
        ([1, 2], None, "1,2"),
        ([1], "4,5,6", "5"),
        ([0, 2], "GPU-a, GPU-b,GPU-c", "GPU-a,GPU-c"),
    ],
)
def test_choose_visible_counts_what_is_shown(
    gpus: list[int], shown: str | None, visible: str
) -> None:
    """GPU 1 of a machine that shows 4, 5 and 6 is 5."""
    assert choose_visible(gpus, shown) == visible


def test_choose_visible_gpu_that_is_not_shown_is_refused() -> None:
    """A machine with fewer GPUs than was planned for is told apart, with what to set."""
    with pytest.raises(ValueError, match=r"GPU 3 .* shows 2 .*cluster\.gpus"):
        choose_visible([3], "4,5")


def test_on_devices_without_gpus_changes_nothing() -> None:
    """A run on CPUs starts its processes as they are."""
    assert on_devices([], ["learner", "job.json"]) == ["learner", "job.json"]


def run_on(gpus: list[int], module: str, shown: str, path: Path = ROOT) -> CompletedProcess[str]:
    """Run a module, which is in `path`, on GPUs of a machine that shows these, to its end."""
    environment = {
        **os.environ,
        "CUDA_VISIBLE_DEVICES": shown,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(path)]),
    }
    command = python_module(on_devices(gpus, [module]))
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_on_devices_module_sees_its_gpus_in_the_order_of_tools(tmp_path: Path) -> None:
    """The process becomes the module, with its GPUs alone, counted as NVIDIA's tools do."""
    (tmp_path / "tell.py").write_text(
        "import os; print(os.environ['CUDA_VISIBLE_DEVICES'], os.environ['CUDA_DEVICE_ORDER'])"
    )
    result = run_on([2, 0], "tell", "4,5,6", tmp_path)
    assert result.stdout.strip() == "6,4 PCI_BUS_ID", result.stderr


def test_on_devices_gpu_that_is_not_shown_ends_with_a_sentence() -> None:
    """The supervisor tells the sentence, and no traceback."""
    result = run_on([1], "json", "4")
    assert result.returncode == 1 and result.stderr.startswith("error: GPU 1 was chosen")


def test_processes_of_a_run_start_on_the_gpus_of_its_plan(tmp_path: Path) -> None:
    """Each engine sees its own, and each rank those of all ranks."""
    engines = [EngineDevice(gpus=gpus, memory_fraction=0.9) for gpus in ([2], [3, 4])]
    job = msgspec.structs.replace(
        job_in(tmp_path, small_config(learner__ranks="2")),
        devices=Devices(engines=engines, learner=[0, 1]),
    )
    command = EngineCommand(["vllm", "serve"], {})
    placed = ["supervisor.on_devices", "3,4", "vllm", "serve"]
    assert engine_arguments(job, 1, command) == placed
    assert learner_arguments(job, 0.0)[:3] == ["supervisor.on_devices", "0,1", "learner"]


def test_processes_of_a_run_on_cpus_start_as_they_are(tmp_path: Path) -> None:
    """Without a plan nothing is narrowed."""
    job = job_in(tmp_path, small_config())
    assert engine_arguments(job, 0, EngineCommand(["vllm"], {})) == ["vllm"]
    assert learner_arguments(job, 1.5) == ["learner", f"{tmp_path}/job.json", "1.500"]


def test_learner_arguments_of_a_rank_name_the_gpus_of_its_machine(tmp_path: Path) -> None:
    """Each machine counts its own GPUs."""
    config = small_config(
        learner__ranks="4",
        cluster__learner_launch="srun,--relative={machine}",
        cluster__learner_machines="2",
    )
    job = msgspec.structs.replace(job_in(tmp_path, config), devices=Devices(learner=[0, 1, 2, 3]))
    gpus = [learner_arguments(job, 0.0, rank)[1] for rank in range(4)]
    assert gpus == ["0,1", "0,1", "2,3", "2,3"]
