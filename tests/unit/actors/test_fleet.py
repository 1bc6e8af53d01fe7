"""The fork server of a fleet, when code of an environment does what it should not.

It ends an actor's process, or cannot be loaded.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

import envs.registry
from actors import pulse
from actors.actor import ControllerLost
from actors.crash import ActorSlot
from actors.fleet import FleetError, load_environments, reseed, run_fleet, supervise
from envs.registry import make_environment
from protocol.messages import DropReason, EpisodeKey
from supervisor.endpoints import free_port
from tests.fixtures.messages import make_lease, make_welcome
from tests.fixtures.runs import running_small

LEASE = make_lease(EpisodeKey(3, 1), lease_attempt=2)


def dies_once(die: Callable[[], object], log: Path) -> Callable[[ActorSlot], None]:
    """An actor that dies in code of LEASE's environment, and whose successor ends well.

    Each notes its name and what it is to report.
    """

    def body(place: ActorSlot) -> None:
        reports = [
            (report.key.id, report.lease_attempt, str(report.drop_reason), report.detail)
            for report in place.reports
        ]
        with log.open("a") as file:
            file.write(f"{place.name.hex()} {reports}\n")
        if len(log.read_text().splitlines()) == 1:
            with place.running.track(LEASE):
                die()

    return body


def test_run_fleet_says_whom_it_asks_before_anybody_answers(caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO", "actors")
    address = f"tcp://127.0.0.1:{free_port()}"
    with pytest.raises(FleetError, match="no controller answers"):
        run_fleet(address, 1, 1, connect_seconds=0.01)
    assert f"asking the controller at {address}, for 0.01 s at most" in caplog.text


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(
    ("die", "how"),
    [
        (lambda: send(signal.SIGSEGV), "was killed (SIGSEGV)"),
        (lambda: send(signal.SIGABRT), "was killed (SIGABRT)"),
        (lambda: os._exit(0), "ended with status 0"),
        (lambda: os._exit(7), "ended with status 7"),
    ],
)
def test_episode_that_ends_its_process_is_reported_by_the_actor_that_follows(
    die: Callable[[], object], how: str, tmp_path: Path
):
    """An episode whose environment ends the process is reported by the actor that follows.

    It has the same name.
    """
    assert not supervise(dies_once(die, tmp_path / "log"), 1, lambda: True)
    (first, none), (second, reports) = (
        line.split(" ", 1) for line in (tmp_path / "log").read_text().splitlines()
    )
    assert first == second and none == "[]"
    assert (
        f"('t3.1', 2, '{DropReason.ENV_ERROR}'" in reports and f"when its process {how};" in reports
    )


@pytest.mark.slow
def test_code_that_blocks_the_event_loop_ends_the_process_and_is_reported(
    tmp_path: Path,
):
    """Code that keeps the event loop from running ends the process and is reported."""
    assert not supervise(
        dies_once(lambda: re.match(r"(a+)+$", "a" * 40 + "b"), tmp_path / "log"),
        1,
        lambda: True,
        longest_seconds=0.5,
    )
    reports = (tmp_path / "log").read_text().splitlines()[1]
    assert (
        "env_error" in reports and "process was ended, as no other code ran for 0.5 s;" in reports
    )


@pytest.mark.slow
def test_an_actor_that_was_stopped_for_long_goes_on_and_blames_no_episode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    beat_s = 0.5
    monkeypatch.setattr(pulse, "BEAT_SECONDS", beat_s)

    def body(place: ActorSlot) -> None:
        async def act() -> None:
            beating = asyncio.create_task(place.pulse.beat())
            if os.fork() == 0:  # somebody who stops the actor, and lets it go on
                os.kill(os.getppid(), signal.SIGSTOP)
                time.sleep(4 * beat_s)
                os.kill(os.getppid(), signal.SIGCONT)
                os._exit(0)
            await asyncio.sleep(2 * beat_s)
            beating.cancel()

        (tmp_path / "log").open("a").write("begun\n")
        with place.running.track(LEASE):
            asyncio.run(act())

    assert not supervise(body, 1, lambda: True, longest_seconds=2 * beat_s)
    assert (tmp_path / "log").read_text() == "begun\n"


def test_an_actor_that_is_killed_from_outside_blames_no_episode(tmp_path: Path):
    assert not supervise(dies_once(lambda: send(signal.SIGKILL), tmp_path / "log"), 1, lambda: True)
    (first, _), (second, reports) = (
        line.split(" ", 1) for line in (tmp_path / "log").read_text().splitlines()
    )
    assert first != second and reports == "[]"


@pytest.mark.slow
def test_child_whose_standard_output_was_closed_does_not_go_on_as_its_parent(
    tmp_path: Path,
):
    """Standard output closed by an environment does not let a child go on as its parent."""

    def body(place: ActorSlot) -> None:
        os.close(1)
        os.close(2)
        (tmp_path / "ran").touch()
        raise SystemExit("whatever")

    before = os.getpid()
    with pytest.raises(FleetError, match="crashed within a minute"):
        supervise(body, 1, lambda: True)
    assert os.getpid() == before and (tmp_path / "ran").exists()


def test_generators_that_a_process_was_forked_with_are_its_own_afterwards():
    state = np.random.get_state()
    drawn = []
    for _ in range(2):
        np.random.set_state(state)
        reseed()
        drawn.append(np.random.random())
    assert drawn[0] != drawn[1]
    np.random.set_state(state)


def test_actors_draw_numbers_of_their_own_by_the_global_generators():
    reader, writer = os.pipe()

    def body(slot: ActorSlot) -> None:
        os.write(writer, f"{random.random()} {np.random.random()}\n".encode())

    assert not supervise(body, 3, lambda: True)
    os.close(writer)
    with os.fdopen(reader) as file:
        drawn = [line.split() for line in file]
    assert len({python for python, _ in drawn}) == len({numpy for _, numpy in drawn}) == 3


def ends_in_order(begun: int, log: int) -> Callable[[ActorSlot], None]:
    """An actor that writes a byte when it has begun, and one when SIGTERM has let it close."""

    def body(slot: ActorSlot) -> None:
        async def act() -> None:
            told = asyncio.Event()
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
            os.write(begun, b"b")
            await told.wait()
            os.write(log, b"c")

        asyncio.run(act())

    return body


def test_a_fleet_that_is_told_to_end_has_its_actors_close_what_they_hold():
    """Also when the signal goes to all its processes, as at the end of a run."""
    begun, begin = os.pipe()
    log, write_log = os.pipe()
    fleet = os.fork()
    if fleet == 0:
        os.setsid()
        supervise(ends_in_order(begin, write_log), 2, lambda: True)
        os._exit(0)
    os.close(begin)
    os.close(write_log)
    with os.fdopen(begun, "rb", buffering=0) as file:
        for _ in range(2):
            assert file.read(1) == b"b"
    os.killpg(fleet, signal.SIGTERM)
    _, status = os.waitpid(fleet, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGTERM
    with os.fdopen(log, "rb") as file:
        assert file.read() == b"cc"


def test_a_fleet_that_loses_its_controller_has_the_other_actors_close():
    """One actor finds out, and the others are ended so that they can close."""
    begun, begin = os.pipe()
    log, write_log = os.pipe()
    role, give_role = os.pipe()
    os.write(give_role, b"1")
    os.set_blocking(role, False)
    wait_for_sigterm = ends_in_order(begin, write_log)

    def body(slot: ActorSlot) -> None:
        try:
            os.read(role, 1)
        except BlockingIOError:
            wait_for_sigterm(slot)
            return
        os.read(begun, 1)
        raise ControllerLost("silent")

    assert supervise(body, 2, lambda: False)
    os.close(write_log)
    with os.fdopen(log, "rb") as file:
        assert file.read() == b"c"


@pytest.mark.parametrize(
    "error", [SystemExit(2), ImportError("no module named game"), KeyError("x")]
)
@pytest.mark.parametrize("where", ["import", "start"])
def test_environment_that_cannot_be_made_is_told_in_one_sentence_with_the_place(
    where: str, error: BaseException, monkeypatch: pytest.MonkeyPatch
):
    """An environment that cannot be made or started here is said in one sentence with the place."""

    def fails(*_: object, **__: object):
        raise error

    environment = make_environment("alfworld")
    environment.start = fails
    monkeypatch.setattr(
        envs.registry,
        "make_environment",
        fails if where == "import" else lambda *_, **__: environment,
    )
    kind = type(error).__name__
    message = rf"alfworld cannot be played on this machine: {kind}: .*test_fleet.py:\d+ in fails"
    with pytest.raises(FleetError, match=message):
        load_environments(make_welcome())


def test_environment_whose_file_is_not_on_this_machine_is_told_with_file_and_host(tmp_path: Path):
    """An actor elsewhere says which file its machine lacks, and what to do."""
    file = tmp_path / "game.py"
    message = (
        rf"cannot be played on this machine: .*there is no file {file} on {os.uname().nodename}"
    )
    with pytest.raises(FleetError, match=message):
        load_environments(msgspec.structs.replace(make_welcome(), environment=f"{file}:Game"))


@pytest.mark.parametrize("where", ["import", "start"])
def test_ctrl_c_while_the_environment_is_loaded_ends_the_fleet(
    where: str, monkeypatch: pytest.MonkeyPatch
):
    def is_interrupted(*_: object, **__: object):
        signal.raise_signal(signal.SIGINT)

    environment = make_environment("alfworld")
    environment.start = is_interrupted
    monkeypatch.setattr(
        envs.registry,
        "make_environment",
        is_interrupted if where == "import" else lambda *_, **__: environment,
    )
    with pytest.raises(KeyboardInterrupt):
        load_environments(make_welcome())


def test_a_first_task_that_does_not_start_keeps_the_others_from_nothing(
    monkeypatch: pytest.MonkeyPatch,
):
    environment = make_environment("alfworld")
    start = environment.start
    environment.start = lambda split, index, seed: (
        start(split, index, seed) if index else random.choice([])
    )
    monkeypatch.setattr(envs.registry, "make_environment", lambda *_, **__: environment)
    assert load_environments(make_welcome()).training is environment


PACKAGE = """
import ctypes, os, sys, threading
from envs.registry import make_environment

class Hostile:
    def __init__(self, **settings):
        self._env = make_environment("alfworld", **settings)

    def __getattr__(self, name):
        return getattr(self._env, name)

    def start(self, split, index):
        episode = self._env.start(split, index)
        if split == "train":
            threading.Thread(target=sys.exit).start()
            episode.step = [
                episode.step,
                lambda action: ctypes.string_at(0),
                episode.step,
                lambda action: sys.exit(3),
            ][index % 4]
        return episode
"""


@pytest.mark.slow
async def test_run_whose_environment_segfaults_trains_on_the_other_episodes(
    tmp_path: Path, small_policy, monkeypatch: pytest.MonkeyPatch
):
    """A run whose environment has segmentation faults trains on the other episodes."""
    info = tmp_path / "packages" / "hostile-1.0.dist-info"
    info.mkdir(parents=True)
    (tmp_path / "packages" / "hostile_env.py").write_text(PACKAGE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: hostile\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[foray.environments]\nhostile = hostile_env:Hostile\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "packages"))
    async with running_small(
        tmp_path / "run",
        small_policy,
        env__name="hostile",
        run__max_updates="3",
        actor__heartbeat_seconds="1",
    ) as run:
        assert await run.ended(150) == 0, run.output
        details = [t.detail for t in run.trajectories() if t.drop_reason is DropReason.ENV_ERROR]
        assert any("SIGSEGV" in detail for detail in details) and any(
            "SystemExit: 3 (" in detail for detail in details
        )
        assert set(run.summary()["dropped"]) <= {"env_error", "canceled"}
        trained = [
            t.key for t in run.trajectories() if not t.key.evaluation and t.drop_reason is None
        ]
        assert len(trained) == len(set(trained)) >= 3 * 2 * 2
