"""`run.py slurm`: the script, run by bash where srun and scontrol are small programs.

They keep to what Slurm documents of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from benchmarks.hosts import NotPermitted, addresses
from config import ConfigError
from learner.checkpoint import latest
from protocol.lifetime import dying_with_parent
from supervisor.cli.main import main
from supervisor.cluster.layout import Machines, run_settings
from tests.fixtures.runs import Run, small_elsewhere

pytestmark = pytest.mark.slow

TIE = '{ [[ -z ${JOB-} ]] || flock "$JOB" kill -KILL 0; } &> /dev/null &'
"""Shell line that ends the step with its job.

The job has ended when nobody holds the lock of the file JOB any more, as Slurm's daemons do on each
machine.
"""
PROGRAMS = {
    "scontrol": 'for node in ${3//,/ }; do echo "$node"; done',  # show hostnames LIST
    "srun": (
        "while [[ $1 == --* ]]; do case $1 in --nodelist=*) export NODE=${1#*=};; esac; shift; "
        "done\n"
    )
    + TIE
    + '\nexec "$@"',
    "hostname": (
        'case $NODE in node*) echo "10.0.0.${NODE#node} fe80::1";; *) echo 127.0.0.1;; esac'
    ),
    "python-that-tells": (
        'flock "$TOLD" echo "$NODE: $*" >> "$TOLD"; [[ " $* " != *" keys "* ]] || mkdir -p "$3/$4"'
    ),
}


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of PROGRAMS, first on PATH."""
    directory = tmp_path / "bin"
    directory.mkdir()
    for name, body in PROGRAMS.items():
        (directory / name).write_text(f"#!/bin/bash\n{body}\n")
        (directory / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}{os.pathsep}{os.environ['PATH']}")
    return directory


def list_started(
    script: Path, slurm: Path, nodes: str, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """Return "node: arguments" of each `python run.py` that the script starts.

    None of them does anything.
    """
    file = script.with_name("told")
    monkeypatch.setenv("TOLD", str(file))
    monkeypatch.setenv("SLURM_JOB_NODELIST", nodes)
    lines = script.read_text().splitlines()
    changed = [
        f"python={slurm / 'python-that-tells'}" if line.startswith("python=") else line
        for line in lines
    ]
    changed[-1:] = ["wait", changed[-1]]  # for those that would be ended with the run
    script.write_text("\n".join(changed) + "\n")
    subprocess.run(["bash", str(script)], check=True, timeout=30)
    found = sorted(file.read_text().splitlines())
    file.unlink()
    return found


def test_each_machine_gets_its_part(tmp_path: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch):
    run = tmp_path / "a run"
    script = tmp_path / "a run.sbatch"
    arguments = [
        "--actor-nodes",
        "2",
        "--actors",
        "32",
        "--learner-nodes",
        "1",
        "--sbatch=--partition=gpu",
        "--env",
        "webshop",
    ]
    assert main(["slurm", str(run), *arguments]) == 0
    assert (
        "#SBATCH --nodes=4\n" in script.read_text()
        and "#SBATCH --partition=gpu\n" in script.read_text()
    )
    keys, head, *actors = list_started(script, slurm, "node1,node2,node3,node4", monkeypatch)
    assert keys == f": run.py keys {run}-keys actors"
    assert head == (
        f"node1: run.py --run.dir {run} --security.keys={run}-keys --controller.host=10.0.0.1 "
        f"--run.weights_dir={run}-weights "
        "--cluster.learner_launch=srun,--disable-status,--overlap,--nodes=1,--ntasks=1,"
        "--relative={machine} --cluster.learner_machines=1 "
        "--learner.host=10.0.0.2 "
        "--controller.port=5555 --actor.count=0 --run.max_minutes=0 --env.name=webshop"
    )
    plays = (
        f"run.py actor --connect tcp://10.0.0.1:5555 --keys {run}-keys/actors --actors 32 --wait "
        "3600"
    )
    assert actors == [f"node3: {plays}", f"node4: {plays}"]


def test_recipe_of_ones_own_is_found_from_where_the_script_runs(
    tmp_path: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.toml").write_text("[learner]\ngroup_size = 4\n")
    monkeypatch.chdir(tmp_path)
    assert main(["slurm", "run", "--recipe", "webshop,mine.toml"]) == 0
    assert f"--recipe=webshop,{tmp_path / 'mine.toml'}" in Path("run.sbatch").read_text()


@pytest.mark.parametrize(
    ("addresses", "taken"),
    [
        ("fd00::17 10.1.0.17", "10.1.0.17"),
        ("172.17.0.1 10.1.0.17", "10.1.0.17"),
        ("172.31.0.1 192.168.122.1 10.88.0.1 172.17.3.4 10.1.0.17", "172.17.3.4"),
        ("127.0.1.1 169.254.3.3 10.1.0.17 172.17.0.1", "10.1.0.17"),
        ("172.17.0.1", "172.17.0.1"),
    ],
)
def test_a_machine_is_known_by_the_address_that_others_reach(
    tmp_path: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch, addresses: str, taken: str
):
    (slurm / "hostname").write_text(f"#!/bin/bash\necho '{addresses} '\n")
    assert main(["slurm", str(tmp_path / "run")]) == 0
    _, head, _ = list_started(tmp_path / "run.sbatch", slurm, "node1,node2", monkeypatch)
    assert f"--controller.host={taken} " in head


def test_a_machine_without_an_ipv4_address_is_named(
    tmp_path: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch
):
    (slurm / "hostname").write_text("#!/bin/bash\necho fd00::17\n")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "node1,node2")
    assert main(["slurm", str(tmp_path / "run")]) == 0
    ended = subprocess.run(
        ["bash", str(tmp_path / "run.sbatch")], capture_output=True, text=True, timeout=30
    )
    assert ended.returncode != 0 and "node1 has no IPv4 address" in ended.stderr


def test_shards_get_machines_of_their_own_with_their_engines(
    tmp_path: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch
):
    arguments = ["--shard-nodes", "2", "--learner-nodes", "2", "--engine.count", "6"]
    assert main(["slurm", str(tmp_path / "run"), *arguments]) == 0
    _, head, actors = list_started(
        tmp_path / "run.sbatch", slurm, "node1,node2,node3,node4,node5,node6", monkeypatch
    )
    step = "srun,--disable-status,--overlap,--nodes=1,--ntasks=1"
    assert (
        f"--cluster.shard_launch={step},--relative={{shard}} "
        "--cluster.shard_hosts=10.0.0.2,10.0.0.3 " in head
    )
    assert (
        f"--cluster.learner_launch={step},--relative={{machine}} --cluster.learner_machines=2 "
        "--learner.host=10.0.0.4 " in head
    )
    assert "--cluster.shards=3 --engine.count=6" in head and actors.startswith("node6: ")


def test_a_run_that_has_begun_is_resumed(
    tmp_path: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch
):
    assert main(["slurm", str(tmp_path / "run")]) == 0
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.toml").touch()
    started = list_started(tmp_path / "run.sbatch", slurm, "node1,node2", monkeypatch)
    assert [line for line in started if f"node1: run.py --resume {tmp_path / 'run'} " in line]


def test_settings_that_follow_from_the_machines_are_refused():
    with pytest.raises(ConfigError, match=r"controller\.host: it follows"):
        run_settings({"controller.host": "10.0.0.1"}, Machines(0, 1, 1, 0))


def test_wrong_settings_are_refused_when_the_script_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture
):
    assert main(["slurm", str(tmp_path / "run"), "--learner.groups_per_updat", "4"]) == 2
    assert (
        "learner.groups_per_update" in capsys.readouterr().err
        and not (tmp_path / "run.sbatch").exists()
    )


async def test_a_job_of_two_machines_runs_to_its_end(
    tmp_path: Path, slurm: Path, small_policy, monkeypatch: pytest.MonkeyPatch
):
    """Real processes, on this machine in the place of both."""
    async with (
        small_elsewhere(tmp_path / "run", small_policy) as arguments,
        job(tmp_path, arguments, monkeypatch) as run,
    ):
        assert await run.ended() == 0, run.output
        assert run.summary()["updates"] == 2 and run.summary()["dropped"] == {}


async def test_a_job_near_its_limit_ends_its_run_with_a_checkpoint(
    tmp_path: Path, slurm: Path, small_policy, monkeypatch
):
    """Slurm signals the script alone."""
    async with small_elsewhere(tmp_path / "run", small_policy) as arguments:
        arguments.append("--run.max_updates=1000")
        async with job(tmp_path, arguments, monkeypatch) as run:
            await run.until(run.updates)
            run.process.send_signal(signal.SIGINT)
            assert await run.ended() == 130, run.output
            assert (
                run.summary()["ended"] == "interrupted"
                and latest(tmp_path / "run").name == f"{run.updates()[-1]['update']:06d}"
            )


async def test_slurm_job_goes_on_without_a_machine_of_actors_and_when_started_again(
    tmp_path: Path, slurm: Path, small_policy: Path, monkeypatch: pytest.MonkeyPatch
):
    """Four machines: controller, learner, and two with actors.

    Near the limit Slurm signals the script alone.
    """
    async with small_elsewhere(tmp_path / "run", small_policy) as arguments, four_addresses(slurm):
        arguments += [
            "--learner-nodes",
            "1",
            "--actor-nodes",
            "2",
            "--actor.heartbeat_seconds=0.4",
            "--run.max_updates=1000",
        ]
        async with job(tmp_path, arguments, monkeypatch, "node1,node2,node3,node4") as run:
            await run.until(lambda: run.updates() and len(run.fleets()) == 2, 120)
            os.kill(run.fleets()[0], signal.SIGKILL)
            controller = run.directory / "logs" / "controller.log"
            await run.until(lambda: controller.read_text().count("was silent") >= 2)
            before = len(run.updates())
            await run.until(lambda: len(run.updates()) >= before + 2)
            run.process.send_signal(signal.SIGINT)
            assert await run.ended() == 130, run.output
            done = run.updates()[-1]["update"]
            assert (
                run.summary()["ended"] == "interrupted"
                and latest(tmp_path / "run").name == f"{done:06d}"
            )
        arguments[-1] = f"--run.max_updates={done + 1}"
        async with job(tmp_path, arguments, monkeypatch, "node1,node2,node3,node4") as run:
            assert await run.ended() == 0, run.output
            assert run.summary()["updates"] == done + 1 and run.left_over() == []
            played = [t.key for t in run.trajectories() if not t.key.evaluation]
            assert len(played) == len(set(played)) and run.summary()["dropped"].keys() <= {
                "canceled"
            }


@contextlib.asynccontextmanager
async def four_addresses(slurm: Path) -> AsyncIterator[None]:
    """node1 to node4 have addresses of their own, while inside."""
    try:
        with addresses(4) as at:
            first = at[0].rpartition(".")[2]
            subnet = at[0].rpartition(".")[0]
            (slurm / "hostname").write_text(
                f"#!/bin/bash\necho {subnet}.$(({first} - 1 + ${{NODE#node}}))\n"
            )
            yield
    except NotPermitted as why:
        pytest.skip(str(why))


@contextlib.asynccontextmanager
async def job(
    directory: Path,
    arguments: list[str],
    monkeypatch: pytest.MonkeyPatch,
    nodes: str = "here,there",
) -> AsyncIterator[Run]:
    """Begin the job of a run in directory/run on these machines.

    Nothing of it is left afterwards.
    """
    assert main(["slurm", *arguments]) == 0
    monkeypatch.setenv("SLURM_JOB_NODELIST", nodes)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("JOB", str(directory / "job"))
    tie = dying_with_parent()

    def begin() -> None:
        tie()
        signal.signal(
            signal.SIGINT, signal.SIG_DFL
        )  # bash traps nothing that its parent ignores; Slurm does not

    how = {
        "stdout": asyncio.subprocess.PIPE,
        "stderr": asyncio.subprocess.STDOUT,
        "start_new_session": True,
        "preexec_fn": begin,
    }
    with (directory / "job").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        process = await asyncio.create_subprocess_exec("bash", str(directory / "run.sbatch"), **how)
        try:
            yield Run(process, directory / "run")
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
    await process.wait()
