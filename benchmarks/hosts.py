"""Hosts as network namespaces with addresses of their own, joined by a bridge.

It works on Linux, for root.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from protocol.lifetime import dying_with_parent
from supervisor.process import ROOT

SUBNET = f"10.213.{os.getpid() % 250 + 1}"  # another one than of a process that was killed
HERE = f"{SUBNET}.1"
"""Address of this process's own namespace, on the bridge."""
PREFIX = "fy"
"""Bridges are called PREFIX and the id of their process, namespaces likewise, with a letter."""
FAR = (0.02, 0.01)
"""Seconds of delay, share of the packets that are lost: each way."""


class NotPermitted(RuntimeError):
    """There can be no namespaces here; the message says why."""


class Host:
    """A namespace `name`, joined to the bridge.

    Its cable has this delay (seconds) and loss, if they are given.
    """

    def __init__(
        self, name: str, number: int, bridge: str, stack: ExitStack, far: tuple[float, float] | None
    ) -> None:
        self.name = name
        self.address = f"{SUBNET}.{number}"
        self._outside = f"{name}o"
        inside = f"{name}i"
        _ip("netns", "add", name)
        stack.callback(subprocess.run, ["ip", "netns", "del", name], check=False)
        if far is None:
            _ip("link", "add", self._outside, "type", "veth", "peer", "name", inside, "netns", name)
        else:
            command = [
                sys.executable,
                "-m",
                "benchmarks.slow_link",
                self._outside,
                inside,
                *map(str, far),
            ]
            cable = stack.enter_context(
                subprocess.Popen(
                    command, cwd=ROOT, stdout=subprocess.PIPE, preexec_fn=dying_with_parent()
                )
            )
            stack.callback(cable.kill)
            if cable.stdout is None or cable.stdout.readline() != b"ready\n":
                raise NotPermitted("no network devices of programs (/dev/net/tun)")
            _ip("link", "set", inside, "netns", name)
        _ip("link", "set", self._outside, "master", bridge, "up")
        _ip("-n", name, "addr", "add", f"{self.address}/24", "dev", inside)
        for device in (inside, "lo"):
            _ip("-n", name, "link", "set", device, "up")

    def join(self, port: int, keys: Path, actors: int, stack: ExitStack) -> subprocess.Popen:
        """Start actors on this host, of the run whose controller listens at `port` HERE.

        They are a group of processes that ends with the stack.
        """
        command = [
            sys.executable,
            "run.py",
            "actor",
            "--connect",
            f"tcp://{HERE}:{port}",
            "--keys",
            str(keys),
            "--actors",
            str(actors),
        ]
        group = subprocess.Popen(
            ["ip", "netns", "exec", self.name, *command, "--wait", "600"],
            cwd=ROOT,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=dying_with_parent(),
        )
        stack.callback(group.wait)
        stack.callback(kill, group)
        return group

    def cut_off(self, yes: bool) -> None:
        """Unplug the cable, or plug it in."""
        _ip("link", "set", self._outside, "down" if yes else "up")


@contextlib.contextmanager
def hosts(count: int, far: tuple[float, float] | None = None) -> Iterator[list[Host]]:
    """So many, while inside. Raises NotPermitted where there can be none."""
    bridge = f"{PREFIX}{os.getpid()}"
    with ExitStack() as stack:
        _add_bridge(bridge, stack)
        _ip("addr", "add", f"{HERE}/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        yield [
            Host(f"{bridge}{chr(ord('a') + number)}", 2 + number, bridge, stack, far)
            for number in range(count)
        ]


@contextlib.contextmanager
def addresses(count: int) -> Iterator[list[str]]:
    """Give this machine so many addresses, none of them loopback's, while inside.

    They are for processes that pretend to be on several machines. Raises NotPermitted where there
    can be none.
    """
    bridge = f"{PREFIX}{os.getpid()}z"
    found = [f"{SUBNET}.{101 + number}" for number in range(count)]
    with ExitStack() as stack:
        _add_bridge(bridge, stack)
        for address in found:
            _ip("addr", "add", f"{address}/32", "dev", bridge)
        _ip("link", "set", bridge, "up")
        yield found


def _add_bridge(name: str, stack: ExitStack) -> None:
    """Make a bridge that is there as long as the stack."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        raise NotPermitted("network devices take root, and iproute2")
    _remove_abandoned()
    try:
        _ip("link", "add", name, "type", "bridge")
    except subprocess.CalledProcessError as error:
        raise NotPermitted(
            f"network devices are not permitted here: {error.stderr.decode().strip()}"
        ) from None
    stack.callback(_ip, "link", "del", name)


def away(learning: Host, port: int, keys: Path, weights: Path) -> dict[str, str]:
    """Settings of a run whose learner is on that host, and whose actors come from others."""
    return {
        "controller.host": HERE,
        "controller.port": str(port),
        "security.keys": str(keys),
        "actor.count": "0",
        "learner.host": learning.address,
        "cluster.learner_launch": f"ip,netns,exec,{learning.name}",
        "run.weights_dir": str(weights),
    }


def kill(group: subprocess.Popen) -> None:
    """All of it, if it has not ended."""
    if group.poll() is None:
        os.killpg(group.pid, signal.SIGKILL)


def _remove_abandoned() -> None:
    """Remove the namespaces and bridges of processes that were killed: nobody else does."""
    namespaces = Path("/run/netns")
    found = [path.name for path in namespaces.iterdir()] if namespaces.exists() else []
    for name in found:
        if _is_abandoned(name):
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
    for path in Path("/sys/class/net").iterdir():
        if _is_abandoned(path.name):
            subprocess.run(["ip", "link", "del", path.name], check=False, capture_output=True)


def _is_abandoned(name: str) -> bool:
    """Tell whether this is the name of a namespace or a bridge whose process has ended."""
    owner = re.fullmatch(rf"{PREFIX}(\d+)[a-z]?", name)
    return owner is not None and not Path("/proc", owner[1]).exists()


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
