"""Hosts as network namespaces with addresses of their own: one with supervisor, controller and engine, one with the learner, two with
actors. One of these is cut off for a while, and one vanishes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from run_fixtures import ROOT, running, running_small

from supervisor.endpoints import free_port

SUBNET = f"10.213.{os.getpid() % 250 + 1}"  # another one than of a test that was killed


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


class Host:
    """A namespace `name`, joined to the bridge."""

    def __init__(self, name: str, number: int, bridge: str, stack: ExitStack) -> None:
        self.name, self._outside, inside = name, f"{name}o", f"{name}i"
        ip("netns", "add", name)
        stack.callback(subprocess.run, ["ip", "netns", "del", name], check=False)
        ip("link", "add", self._outside, "type", "veth", "peer", "name", inside, "netns", name)
        ip("link", "set", self._outside, "master", bridge, "up")
        ip("-n", name, "addr", "add", f"{SUBNET}.{number}/24", "dev", inside)
        for device in (inside, "lo"):
            ip("-n", name, "link", "set", device, "up")

    def join(self, port: int, keys: Path) -> subprocess.Popen:
        """Two actors of this host, in a group of processes of their own."""
        command = [sys.executable, "run.py", "actor", "--connect", f"tcp://{SUBNET}.1:{port}", "--keys", str(keys), "--actors", "2"]
        return subprocess.Popen(
            ["ip", "netns", "exec", self.name, *command, "--wait", "120"], cwd=ROOT, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def cut_off(self, yes: bool) -> None:
        ip("link", "set", self._outside, "down" if yes else "up")


@pytest.fixture
def hosts() -> Iterator[tuple[Host, ...]]:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces take root, and iproute2")
    bridge = f"fy{os.getpid() % 100000}"
    with ExitStack() as stack:
        try:
            ip("link", "add", bridge, "type", "bridge")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces are not permitted here: {error.stderr.decode().strip()}")
        stack.callback(ip, "link", "del", bridge)
        ip("addr", "add", f"{SUBNET}.1/24", "dev", bridge)
        ip("link", "set", bridge, "up")
        yield tuple(Host(f"{bridge}{name}", number, bridge, stack) for number, name in enumerate("abl", 2))


@pytest.mark.slow
async def test_a_run_goes_on_when_a_host_is_cut_off_for_a_while_and_when_one_vanishes(tmp_path: Path, small_policy: Path, hosts) -> None:
    first, second, learning = hosts
    port, keys = free_port(f"{SUBNET}.1"), tmp_path / "keys"
    async with running(tmp_path, "keys", str(keys), "first", "second") as made:
        assert await made.ended(20) == 0, made.output
    settings = {
        "controller__host": f"{SUBNET}.1", "controller__port": str(port), "security__keys": str(keys), "actor__count": "0",
        "learner__host": f"{SUBNET}.4", "learner__launch": f"ip,netns,exec,{learning.name}", "run__weights_dir": str(tmp_path / "weights"),
        "actor__heartbeat_seconds": "0.4", "run__updates": "100000", "learner__checkpoint_every": "1000",
    }  # fmt: skip
    with ExitStack() as stack:
        joined = [host.join(port, keys / name) for host, name in ((first, "first"), (second, "second"))]
        for group in joined:
            stack.callback(group.wait)
            stack.callback(kill, group)
        async with running_small(tmp_path / "run", small_policy, **settings) as run:

            def silent() -> int:
                return (run.directory / "logs" / "controller.log").read_text().count("was silent")

            async def more_updates() -> None:
                before = len(run.updates())
                await run.until(lambda: len(run.updates()) >= before + 3, 90)

            await more_updates()
            first.cut_off(True)
            await run.until(lambda: silent() >= 2)  # both of its actors
            await more_updates()
            first.cut_off(False)
            kill(joined[1])
            await run.until(lambda: silent() >= 4, 90)
            await more_updates()  # by the first one's actors alone, which have come back
            run.process.send_signal(signal.SIGINT)
            assert await run.ended() == 130, run.output
            assert all(line["token_age_max"] <= 1 for line in run.updates()) and run.summary()["dropped"].keys() <= {"cancelled"}
            keys_of = [t.key for t in run.trajectories() if not t.key.evaluation]
            assert len(keys_of) == len(set(keys_of)) and run.left_over() == []


def kill(group: subprocess.Popen) -> None:
    if group.poll() is None:
        os.killpg(group.pid, signal.SIGKILL)
