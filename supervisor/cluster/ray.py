"""A run on the machines of a Ray cluster that is there already: Ray places, starts and restarts,
and knows nothing of what runs.

`python -m supervisor.cluster.ray NAME COMMAND ...` runs a command where the host called NAME is:
what learner.launch and controller.launch are told here.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path

import ray
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from config import ConfigError
from protocol.lifetime import dying_with_parent
from protocol.security import make_keys
from supervisor.cluster.layout import Machines, keys_of, run_settings, weights_of
from supervisor.interrupts import interrupting_signals
from supervisor.process import ERROR_PREFIX, ROOT

NAMESPACE = "foray"
GPUS = "CUDA_VISIBLE_DEVICES"


class HostLost(Exception):
    """The machine of a host has gone, or Ray has ended what ran there."""


@ray.remote(num_cpus=1)
class Host:
    """A place on a machine, where commands run. What runs dies with it."""

    def __init__(self) -> None:
        self._running: list[subprocess.Popen] = []

    def address(self) -> str:
        return ray.util.get_node_ip_address()

    def run(self, command: list[str], environment: dict[str, str]) -> int:
        """To its end, in the project's directory; its exit status.

        Ray says which GPUs there are, unless `environment` does.
        """
        own = {
            **environment,
            **({GPUS: os.environ[GPUS]} if GPUS in os.environ and GPUS not in environment else {}),
        }
        tie = dying_with_parent()

        def begin() -> None:
            tie()
            signal.pthread_sigmask(
                signal.SIG_SETMASK, ()
            )  # threads of Ray's workers block signals, which children inherit

        process = subprocess.Popen(
            command, cwd=ROOT, env=own, start_new_session=True, preexec_fn=begin
        )
        self._running.append(process)
        status = process.wait()
        return (
            status if status >= 0 else 128 - status
        )  # as a shell has it: no process can end with a negative one

    def signal(self, number: int) -> None:
        """To all that runs here."""
        for process in self._running:
            if process.poll() is None:
                os.killpg(process.pid, number)


def run_on_ray(
    directory: Path,
    machines: Machines,
    gpus: int,
    learner_gpus: int,
    wait: float,
    overrides: dict[str, str],
) -> int:
    """The run's exit status; it goes on if it has begun.

    `directory`, the project and its Python are on a disk that all machines see. Ctrl-C: as in any
    run. Raises ConfigError when there is no cluster, or after `wait` seconds no room in it.
    """
    settings = run_settings(overrides, machines)
    keys = keys_of(directory)
    os.chdir(
        ROOT
    )  # Ray's workers look for modules in the working directory first: a config.py of the user's would take ours' place
    _connect(log_to_driver=True)
    name = uuid.uuid4().hex[:8]
    wanted = [
        *[gpus] * (1 + machines.shards),
        *[learner_gpus] * machines.learner,
        *[0] * machines.actor_nodes,
    ]
    hosts = _hosts(name, wanted, machines.first_actors, wait)
    if not (keys / "actors").exists():
        make_keys(keys, "actors")
    addresses = ray.get([host.address.remote() for host in hosts])
    begin = (
        ["--resume", str(directory)]
        if (directory / "config.toml").exists()
        else ["--run.dir", str(directory)]
    )
    given = {
        "security.keys": str(keys),
        "controller.host": addresses[0],
        "run.weights_dir": str(weights_of(directory)),
    } | settings
    there = f"{sys.executable},-m,supervisor.cluster.ray,{name}"
    if machines.shards:
        given |= {
            "controller.launch": f"{there}-{{shard}}",
            "controller.hosts": ",".join(addresses[1 : 1 + machines.shards]),
        }
    if machines.learner:
        given |= {
            "learner.launch": f"{there}-{machines.learner_node}",
            "learner.host": addresses[machines.learner_node],
        }
    train = [
        sys.executable,
        "run.py",
        *begin,
        *(f"--{name}={value}" for name, value in given.items()),
    ]
    play = [
        sys.executable,
        "run.py",
        "actor",
        "--connect",
        f"tcp://{addresses[0]}:{settings['controller.port']}",
    ]
    play += ["--keys", str(keys / "actors"), "--actors", str(machines.actors), "--wait", "3600"]
    playing = [host.run.remote(play, dict(os.environ)) for host in hosts[machines.first_actors :]]
    try:
        status = _to_the_end(hosts[0], train)
    except HostLost:
        print(
            f"{ERROR_PREFIX}the machine of the controller is lost; the same command goes on with the "
            "run",
            file=sys.stderr,
        )
        status = 1
    ray.wait(playing, num_returns=len(playing), timeout=10.0)
    ray.shutdown()
    return status


def _hosts(name: str, gpus: Sequence[int], fixed: int, wait: float) -> list:
    """Hosts called NAME-0, NAME-1, ..., on as many machines as there are.

    After the first `fixed`, they are started again if their machine goes.
    """
    bundles = [{"CPU": 1} | ({"GPU": count} if count else {}) for count in gpus]
    group = placement_group(bundles, strategy="SPREAD")
    if not group.wait(wait):
        raise ConfigError(
            f"Ray has no room for {bundles} (in all {ray.cluster_resources()}); ask for less, "
            "add machines, or wait longer (--wait)"
        )
    hosts = []
    for number, count in enumerate(gpus):
        where = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=number)
        options = {
            "name": f"{name}-{number}",
            "num_gpus": count,
            "max_concurrency": 8,
            "scheduling_strategy": where,
        }
        again = {"max_restarts": -1, "max_task_retries": -1} if number >= fixed else {}
        hosts.append(Host.options(**options, **again).remote())
    return hosts


def _to_the_end(host, command: list[str]) -> int:
    """Run a command there, and pass on to it the signals that come here; its exit status.

    Raises HostLost when its machine goes.
    """
    status = host.run.remote(command, dict(os.environ))
    came: list[int] = []
    for number in interrupting_signals():
        signal.signal(number, lambda number, _: came.append(number))
    while not ray.wait([status], timeout=0.5)[0]:
        while came:
            host.signal.remote(came.pop(0))
    try:
        return ray.get(status)
    except ray.exceptions.RayActorError:
        raise HostLost from None


def _at(name: str, command: list[str]) -> int:
    """Run a command at the host of that name; its exit status."""
    try:
        return _to_the_end(ray.get_actor(name), command)
    except (HostLost, ValueError):  # ValueError: Ray knows no such actor any more
        said = (
            f"{ERROR_PREFIX}Ray has lost the machine where this ran ({name}); the same command goes "
            "on with the run"
        )
        print(said, file=sys.stderr, flush=True)
        os._exit(1)  # without ray.shutdown(), which may wait for what is lost


def _connect(log_to_driver: bool) -> None:
    try:
        ray.init(
            address="auto", namespace=NAMESPACE, log_to_driver=log_to_driver, logging_level="ERROR"
        )
    except ConnectionError:
        raise ConfigError(
            "there is no Ray cluster here; start one (ray start --head), or set RAY_ADDRESS"
        ) from None


if __name__ == "__main__":
    _connect(log_to_driver=False)
    sys.exit(_at(sys.argv[1], sys.argv[2:]))
