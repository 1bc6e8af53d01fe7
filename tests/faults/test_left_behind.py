"""Benchmarks and tests leave nothing of theirs behind, however they end."""

from __future__ import annotations

import ast
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from protocol.lifetime import dying_with_parent
from tests.fixtures import ROOT
from tests.fixtures.runs import SMALL, options, processes

BENCHMARK = """
import sys
from pathlib import Path
from benchmarks.studies import run
run(Path(sys.argv[1]), sys.argv[2:])
"""
TEST = """
import asyncio, sys
from pathlib import Path
from tests.fixtures.runs import running

async def main():
    async with running(Path(sys.argv[1]), "--run-dir", *sys.argv[1:]) as run:
        await run.ended()

asyncio.run(main())
"""
STARTS = ("subprocess.Popen", "asyncio.create_subprocess_exec")


@pytest.mark.slow
@pytest.mark.parametrize("program", [BENCHMARK, TEST], ids=["benchmark", "test"])
def test_a_run_ends_with_what_started_it_even_if_that_is_killed(
    tmp_path: Path, program: str
) -> None:
    directory = tmp_path / "run"
    command = [sys.executable, "-c", program, str(directory), *options(SMALL)]

    def running() -> list[str]:
        return [line for _, line in processes() if str(directory) in line]

    def await_that(condition) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline, running()
            time.sleep(0.05)

    parent = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, preexec_fn=dying_with_parent()
    )
    await_that(lambda: any("job.json" in line for line in running()))
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    await_that(lambda: not running())


DISK = """
import os, signal, sys
from pathlib import Path
from benchmarks.chaos import small_disk
with small_disk(Path(sys.argv[1])) as disk:
    print(disk is not None and os.path.ismount(disk), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="no mount namespaces")
def test_the_disk_of_a_benchmark_that_is_killed_is_mounted_no_more(tmp_path: Path) -> None:
    command = [sys.executable, "-c", DISK, str(tmp_path / "disk")]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, preexec_fn=dying_with_parent()
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert str(tmp_path / "disk") not in Path("/proc/self/mounts").read_text()
    if done.stdout == "False\n":
        pytest.skip("no permission to mount a disk")
    assert done.stdout == "True\n"


@pytest.mark.parametrize("folder", ["benchmarks", "tests"])
def test_whatever_starts_a_process_ties_it_to_itself(folder: str) -> None:
    for source in sorted((ROOT / folder).rglob("*.py")):
        for function in ast.walk(ast.parse(source.read_text())):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.unparse(function)
                starts = any(
                    isinstance(call, ast.Call) and ast.unparse(call.func) in STARTS
                    for call in ast.walk(function)
                )
                runs = "subprocess.run(" in text and "'run.py'" in text
                assert "preexec_fn" in text or not (starts or runs), (
                    f"{source.name}: {function.name}"
                )
