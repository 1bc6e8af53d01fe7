"""The addresses at which the processes of a run find each other, on one machine or on several."""

from __future__ import annotations

import errno
import itertools
import random
import socket
import sys
from collections import deque
from dataclasses import dataclass

from config import Config, ConfigError, Endpoints
from protocol.security import is_loopback

LOOPBACK = "127.0.0.1"
ALL_ADDRESSES = "0.0.0.0"

UNASSIGNED_PORTS = range(10_000, 32_768)
"""Ports that systems give to no outgoing connection by default.

One chosen here is still free when its process gets to listen on it.
"""

# Runs that start at once begin at different ports.
_candidates = itertools.count(random.SystemRandom().randrange(len(UNASSIGNED_PORTS)))

# The oldest ports are listened on by now, or never will be.
_reservations: deque[socket.socket] = deque(maxlen=256)


def check_launch(config: Config) -> None:
    """Raise ConfigError when a learner elsewhere would not find us, nor engines its weights."""
    cluster = config.cluster
    names_machine = any("{machine}" in word for word in cluster.learner_launch)
    if cluster.learner_machines > 1 and not names_machine:
        raise ConfigError(
            f"cluster.learner_machines: nothing starts ranks on {cluster.learner_machines} "
            "machines; set cluster.learner_launch, with {machine} in it"
        )
    if config.learner.ranks % cluster.learner_machines:
        raise ConfigError(
            f"cluster.learner_machines: {cluster.learner_machines} machines cannot have equally "
            f"many of {config.learner.ranks} ranks (learner.ranks)"
        )
    if not config.cluster.learner_launch:
        return
    if not (config.learner.host and config.run.weights_dir):
        raise ConfigError(
            "cluster.learner_launch: a learner elsewhere needs learner.host, and "
            "run.weights_dir on a disk that both machines see"
        )
    for name, host in (
        ("controller.host", config.controller.host),
        ("learner.host", config.learner.host),
    ):
        if host in (ALL_ADDRESSES, "*") or is_loopback(f"tcp://{host}"):
            raise ConfigError(
                f"{name}: with cluster.learner_launch, give an address at which the other "
                f"machine finds this one, not {host}"
            )


def check_shards(config: Config) -> None:
    """Raise ConfigError when shards lack engines, or cannot find each other, or weights."""
    cluster = config.cluster
    engine_count = len(config.engine.urls) or config.engine.count
    other_shards = cluster.shards - 1
    if cluster.shards > engine_count:
        raise ConfigError(
            f"cluster.shards: {cluster.shards} cannot share {engine_count} engines "
            "(engine.count, engine.urls): each needs one"
        )
    if other_shards and config.engine.weights == "nccl":
        raise ConfigError(
            "cluster.shards: several get weights as files alone; set engine.weights file, or "
            "leave it at 1"
        )
    if bool(cluster.shard_hosts) != bool(cluster.shard_launch):
        raise ConfigError(
            "cluster.shard_hosts: where other shards are, and cluster.shard_launch, what starts "
            "them there, go together"
        )
    if not cluster.shard_hosts:
        return
    if len(cluster.shard_hosts) != other_shards:
        raise ConfigError(
            f"cluster.shard_hosts: {len(cluster.shard_hosts)} addresses for {other_shards} "
            "other shards (cluster.shards)"
        )
    if config.engine.urls or not config.run.weights_dir:
        raise ConfigError(
            "cluster.shard_hosts: needs engines that the run starts, and run.weights_dir on a disk "
            "that all machines see"
        )
    if config.controller.host in (ALL_ADDRESSES, "*"):
        raise ConfigError(
            "controller.host: with cluster.shard_hosts, give an address at which they find this "
            f"machine, not {config.controller.host}"
        )


def check_ipv4(setting: str, host: str) -> None:
    """Raise ConfigError for another machine's address that is IPv6 alone: our sockets are IPv4's.

    A name that nobody knows yet may still become known.
    """
    if not host:
        return
    try:
        addresses = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return
    if all(family == socket.AF_INET6 for family, *_ in addresses):
        raise ConfigError(
            f"{setting}: {host} is an IPv6 address, and a run uses IPv4; give an IPv4 address of "
            "that machine"
        )


def check_hosts(config: Config) -> None:
    """Raise ConfigError when a process would listen at an address that this machine lacks."""
    for host in config.cluster.shard_hosts:
        check_ipv4("cluster.shard_hosts", host)
    hosts = {"controller.host": config.controller.host, "dashboard.host": config.dashboard.host}
    if config.cluster.learner_launch:
        check_ipv4("learner.host", config.learner.host)
    else:
        # Where it is empty, any address will do here: controller.host is taken.
        hosts["learner.host"] = config.learner.host
    for name, host in hosts.items():
        with socket.socket() as probe:
            try:
                probe.bind((host, 0))
            except (OSError, UnicodeError):  # UnicodeError: the text cannot be a name
                raise ConfigError(
                    f"{name}: {host!r} is no IPv4 address of this machine; give one that is, or "
                    "0.0.0.0 for all"
                ) from None


@dataclass(frozen=True)
class ShardHost:
    """The machine of a shard and of its engines."""

    address: str
    """Address for actors."""

    engine_address: str = LOOPBACK
    """Address at which the shard reaches its engines."""

    is_remote: bool = False


def choose_endpoints(config: Config) -> Endpoints:
    """Choose the address of every process.

    Ports are fixed where settings fix them, and free ones elsewhere.

    Raises ConfigError for a fixed port that is not free, and for a host that is not this machine.
    """
    check_hosts(config)
    hosts = _shard_hosts(config)
    local_host = _local_host(config)
    learner_host = config.learner.host or config.controller.host
    is_learner_remote = bool(config.cluster.learner_launch)
    trajectory_port = _choose_port(
        learner_host, config.learner.port, "learner.port", is_learner_remote
    )
    weights_port = _choose_port(learner_host, 0, "learner.host", is_learner_remote)
    turn_addresses = _turn_addresses(config, hosts)
    return Endpoints(
        actors=turn_addresses[0],
        learner=_free_address(local_host),
        signals=_signal_addresses(config, hosts),
        trajectories=f"tcp://{learner_host}:{trajectory_port}",
        stats=_free_address(local_host),
        dashboard=_dashboard_url(config),
        weights=f"tcp://{learner_host}:{weights_port}",
        engines=_engine_urls(config, hosts),
        shards=_shards_address(config),
        turns=turn_addresses[1:],
    )


def _shard_hosts(config: Config) -> list[ShardHost]:
    """The machine of each shard; the first one is here."""
    local = ShardHost(config.controller.host)
    if not config.cluster.shard_hosts:
        return [local] * config.cluster.shards
    remote = [ShardHost(host, host, is_remote=True) for host in config.cluster.shard_hosts]
    return [local, *remote]


def _local_host(config: Config) -> str:
    """The address at which the learner reaches the supervisor and the controller."""
    if config.cluster.learner_launch:
        return config.controller.host
    return LOOPBACK


def _turn_addresses(config: Config, hosts: list[ShardHost]) -> list[str]:
    """The address of each shard for the turns of actors."""
    setting = "controller.port"
    addresses = []
    for number, host in enumerate(hosts):
        fixed_port = _nth_port(config.controller.port, number)
        port = _choose_port(host.address, fixed_port, setting, host.is_remote)
        addresses.append(f"tcp://{host.address}:{port}")
    return addresses


def _signal_addresses(config: Config, hosts: list[ShardHost]) -> list[str]:
    """The address of each shard for the signals of its engines, which are on its machine."""
    setting = "controller.signals_port"
    addresses = []
    for number, host in enumerate(hosts):
        fixed_port = _nth_port(config.controller.signals_port, number)
        port = _choose_port(LOOPBACK, fixed_port, setting, host.is_remote)
        addresses.append(f"tcp://{LOOPBACK}:{port}")
    return addresses


def _engine_urls(config: Config, hosts: list[ShardHost]) -> list[str]:
    """The address of each engine; they are dealt out to shards as `Endpoints.shard_of` has it."""
    if config.engine.urls:
        return [url.rstrip("/") for url in config.engine.urls]
    urls = []
    for number in range(config.engine.count):
        host = hosts[number % len(hosts)]
        fixed_port = _nth_port(config.engine.port, number)
        port = _choose_port(host.engine_address, fixed_port, "engine.port", host.is_remote)
        urls.append(f"http://{host.engine_address}:{port}")
    return urls


def _dashboard_url(config: Config) -> str:
    port = free_port(config.dashboard.host, config.dashboard.port, "dashboard.port")
    return f"http://{config.dashboard.host}:{port}"


def _shards_address(config: Config) -> str:
    """The address at which other shards reach the controller; "" without any."""
    if config.cluster.shards == 1:
        return ""
    if config.cluster.shard_hosts:
        return _free_address(config.controller.host)
    return _free_address(LOOPBACK)


def _free_address(host: str) -> str:
    return f"tcp://{host}:{free_port(host, 0, 'controller.host')}"


def _nth_port(first: int, number: int) -> int:
    """The port of a process by its number, where the first one's is fixed; else 0, for any."""
    if first == 0:
        return 0
    return first + number


def _choose_port(host: str, fixed_port: int, setting: str, is_remote: bool) -> int:
    """The fixed port, or a free one where that is 0.

    Of another machine, nobody can find out from here which ports are free.
    """
    if not is_remote:
        return free_port(host, fixed_port, setting)
    return fixed_port or _next_candidate()


def _next_candidate() -> int:
    return UNASSIGNED_PORTS[next(_candidates) % len(UNASSIGNED_PORTS)]


def free_port(host: str = LOOPBACK, port: int = 0, setting: str = "") -> int:
    """Return `port` if it is free at `host`; for 0, any port that is free.

    Raises ConfigError naming `setting` when `port` is not free.
    """
    while True:
        candidate = port or _next_candidate()
        if not port and not reserve_port(candidate):
            continue
        with socket.socket() as probe:
            # As ZeroMQ does: a port of a run that has just ended is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, candidate))
                return candidate
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise ConfigError(
                        f"{setting}: cannot listen on {host}:{candidate}: {error.strerror}"
                    ) from None
        if port:
            raise ConfigError(
                f"{setting}: port {port} is in use; give another one, or 0 for any free one"
            )


def reserve_port(port: int) -> bool:
    """Keep other runs of this machine from choosing `port` before its process listens on it.

    False when another run has reserved it. The reservation is a name in Linux's abstract socket
    namespace, which is a network namespace's own, as ports are, and ends with this process.
    Elsewhere nothing is reserved.
    """
    if sys.platform != "linux":
        return True
    reservation = socket.socket(socket.AF_UNIX)
    try:
        reservation.bind(f"\0foray-port-{port}")
    except OSError:
        reservation.close()
        return False
    _reservations.append(reservation)
    return True
