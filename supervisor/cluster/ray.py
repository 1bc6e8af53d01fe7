"""Run on the machines of a Ray cluster that is there already.

Ray places, starts and restarts, and knows nothing of what runs.

`python -m supervisor.cluster.ray NAME COMMAND ...` runs a command where the host called NAME is:
what cluster.learner_launch and cluster.shard_launch are told here.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import ray
from ray.exceptions import RayActorError
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from config import ConfigError
from protocol.lifetime import dying_with_parent
from protocol.security import make_keys
from supervisor.cluster.layout import Machines, keys_of, run_settings, weights_of
from supervisor.interrupts import interrupting_signals
from supervisor.on_devices import VISIBLE
from supervisor.process import ERROR_PREFIX, ROOT

NAMESPACE = "foray"


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
        """Run a command to its end, in the project's directory; returns its exit status.

        It sees the GPUs that Ray keeps free for this host, whatever `environment` says of those of
        another machine.
        """
        variables = dict(environment)
        if ray.get_gpu_ids():
            variables[VISIBLE] = os.environ[VISIBLE]
        die_with_parent = dying_with_parent()

        def prepare_child() -> None:
            die_with_parent()
            # Threads of Ray's workers block signals, which children inherit.
            signal.pthread_sigmask(signal.SIG_SETMASK, ())

        process = subprocess.Popen(
            command, cwd=ROOT, env=variables, start_new_session=True, preexec_fn=prepare_child
        )
        self._running.append(process)
        status = process.wait()
        if status < 0:
            return 128 - status  # as a shell has it: no process can end with a negative one
        return status

    def signal(self, number: int) -> None:
        """Send a signal to all that runs here."""
        for process in self._running:
            if process.poll() is None:
                os.killpg(process.pid, number)


def run_on_ray(
    directory: Path,
    machines: Machines,
    gpus: int,
    learner_gpus: int,
    wait_s: float,
    overrides: dict[str, str],
) -> int:
    """Run on a Ray cluster, or go on with a run that has begun; returns the run's exit status.

    `directory`, the project and its Python are on a disk that all machines see. Ctrl-C: as in any
    run. Raises ConfigError when there is no cluster, or after `wait_s` seconds no room in it.
    """
    settings = run_settings(overrides, machines)
    # Ray's workers look for modules in the working directory first, where a config/ of the user's
    # would take the place of ours.
    os.chdir(ROOT)
    _connect(log_to_driver=True)
    name = uuid.uuid4().hex[:8]
    gpus_by_host = [
        *[gpus] * (1 + machines.shards),
        *[learner_gpus] * machines.learner,
        *[0] * machines.actor_nodes,
    ]
    hosts = _place_hosts(name, gpus_by_host, machines.first_actors, wait_s)
    keys = keys_of(directory)
    if not (keys / "actors").exists():
        make_keys(keys, "actors")
    addresses = ray.get([host.address.remote() for host in hosts])
    train = _train_command(directory, machines, addresses, name, settings)
    play = _play_command(machines, addresses[0], keys / "actors", settings)
    actors = [host.run.remote(play, dict(os.environ)) for host in hosts[machines.first_actors :]]
    try:
        status = _run_to_end(hosts[0], train)
    except HostLost:
        print(
            f"{ERROR_PREFIX}the machine of the controller is lost; the same command goes on with "
            "the run",
            file=sys.stderr,
        )
        status = 1
    ray.wait(actors, num_returns=len(actors), timeout=10.0)
    ray.shutdown()
    return status


def _train_command(
    directory: Path,
    machines: Machines,
    addresses: Sequence[str],
    name: str,
    settings: dict[str, str],
) -> list[str]:
    """The command of the run, for the first machine; `addresses` are those of all machines."""
    beginning = ["--run.dir", str(directory)]
    if (directory / "config.toml").exists():
        beginning = ["--resume", str(directory)]
    placed_settings = {
        "security.keys": str(keys_of(directory)),
        "controller.host": addresses[0],
        "run.weights_dir": str(weights_of(directory)),
    }
    placed_settings |= settings
    launch = f"{sys.executable},-m,supervisor.cluster.ray,{name}"
    if machines.shards:
        placed_settings |= {
            "cluster.shard_launch": f"{launch}-{{shard}}",
            "cluster.shard_hosts": ",".join(addresses[1 : 1 + machines.shards]),
        }
    if machines.learner:
        placed_settings |= {
            "cluster.learner_launch": f"{launch}-{{machine}}",
            "cluster.learner_machines": str(machines.learner),
            "learner.host": addresses[machines.learner_node],
        }
    options = [f"--{setting}={value}" for setting, value in placed_settings.items()]
    return [sys.executable, "run.py", *beginning, *options]


def _play_command(
    machines: Machines, address: str, keys: Path, settings: dict[str, str]
) -> list[str]:
    """The command of a machine with actors; `address` is the controller's."""
    return [
        sys.executable,
        "run.py",
        "actor",
        "--connect",
        f"tcp://{address}:{settings['controller.port']}",
        "--keys",
        str(keys),
        "--actors",
        str(machines.actors),
        "--wait",
        "3600",
    ]


def _place_hosts(
    name: str, gpus_by_host: Sequence[int], first_restarted: int, wait_s: float
) -> list:
    """Place hosts called NAME-0, NAME-1, ..., on as many machines as there are.

    From number `first_restarted` on, they are started again if their machine goes.
    """
    bundles: list[dict[str, float]] = [{"CPU": 1, "GPU": gpus} for gpus in gpus_by_host]
    for bundle in bundles:
        if bundle["GPU"] == 0:
            del bundle["GPU"]
    group = placement_group(bundles, strategy="SPREAD")
    if not group.wait(wait_s):
        raise ConfigError(
            f"Ray has no room for {bundles} (in all {ray.cluster_resources()}); ask for less, "
            "add machines, or wait longer (--wait)"
        )
    hosts = []
    for number, gpus in enumerate(gpus_by_host):
        strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=number)
        options = {
            "name": f"{name}-{number}",
            "num_gpus": gpus,
            "max_concurrency": 8,
            "scheduling_strategy": strategy,
        }
        if number >= first_restarted:
            options |= {"max_restarts": -1, "max_task_retries": -1}
        hosts.append(Host.options(**options).remote())
    return hosts


def _run_to_end(host, command: list[str]) -> int:
    """Run a command at a host, and pass on the signals that come here; returns its exit status.

    Raises HostLost when its machine goes.
    """
    status = host.run.remote(command, dict(os.environ))
    received: list[int] = []
    for number in interrupting_signals():
        signal.signal(number, lambda number, _: received.append(number))
    while not ray.wait([status], timeout=0.5)[0]:
        while received:
            host.signal.remote(received.pop(0))
    try:
        return ray.get(status)
    except RayActorError:
        raise HostLost from None


def _run_at(name: str, command: list[str]) -> int:
    """Run a command at the host of that name; returns its exit status."""
    try:
        return _run_to_end(ray.get_actor(name), command)
    except (HostLost, ValueError):  # ValueError: Ray knows no such actor any more
        message = (
            f"{ERROR_PREFIX}Ray has lost the machine where this ran ({name}); the same command "
            "goes on with the run"
        )
        print(message, file=sys.stderr, flush=True)
        os._exit(1)  # without ray.shutdown(), which may wait for what is lost


def _connect(log_to_driver: bool) -> None:
    level = cast(int, "ERROR")  # Ray takes a name, too, which its own default is
    try:
        ray.init(
            address="auto", namespace=NAMESPACE, log_to_driver=log_to_driver, logging_level=level
        )
    except ConnectionError:
        raise ConfigError(
            "there is no Ray cluster here; start one (ray start --head), or set RAY_ADDRESS"
        ) from None


if __name__ == "__main__":
    _connect(log_to_driver=False)
    sys.exit(_run_at(sys.argv[1], sys.argv[2:]))
