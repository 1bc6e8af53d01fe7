"""Where the processes of a run find each other, on one machine or on several."""

from __future__ import annotations

import errno
import itertools
import random
import socket
import sys
from collections import deque
from typing import NamedTuple

from config import Config, ConfigError, Endpoints
from protocol.security import is_loopback

UNASSIGNED = range(10_000, 32_768)
"""Ports that systems give to no outgoing connection by default: one chosen here is still free when
its process gets to listen on it."""

_tried = itertools.count(
    random.SystemRandom().randrange(len(UNASSIGNED))
)  # runs that start at once begin at different ones
_reserved: deque[socket.socket] = deque(
    maxlen=256
)  # the oldest ports are listened on by now, or never will be


def check_launch(config: Config) -> None:
    """Raises ConfigError when a learner elsewhere would not find us, nor the engines its
    weights."""
    if not config.learner.launch:
        return
    if not (config.learner.host and config.run.weights_dir):
        raise ConfigError(
            "learner.launch: a learner elsewhere needs learner.host, and run.weights_dir on a "
            "disk that both machines see"
        )
    for name, host in (
        ("controller.host", config.controller.host),
        ("learner.host", config.learner.host),
    ):
        if host in ("0.0.0.0", "*") or is_loopback(f"tcp://{host}"):
            raise ConfigError(
                f"{name}: with learner.launch, give an address at which the other machine finds "
                f"this one, not {host}"
            )


def check_shards(config: Config) -> None:
    """Raises ConfigError when there are more shards than engines, or they would not find each
    other, or their engines no weights."""
    settings = config.controller
    engines = len(config.engine.urls) or config.engine.count
    others = settings.shards - 1
    if settings.shards > engines:
        raise ConfigError(
            f"controller.shards: {settings.shards} cannot share {engines} engines (engine.count, "
            "engine.urls): each needs one"
        )
    if others and config.engine.weights == "nccl":
        raise ConfigError(
            "controller.shards: several get weights as files alone; set engine.weights file, or "
            "leave it at 1"
        )
    if bool(settings.hosts) != bool(settings.launch):
        raise ConfigError(
            "controller.hosts: where other shards are, and controller.launch, what starts them "
            "there, go together"
        )
    if not settings.hosts:
        return
    if len(settings.hosts) != others:
        raise ConfigError(
            f"controller.hosts: {len(settings.hosts)} addresses for {others} other shards "
            "(controller.shards)"
        )
    if config.engine.urls or not config.run.weights_dir:
        raise ConfigError(
            "controller.hosts: needs engines that the run starts, and run.weights_dir on a disk "
            "that all machines see"
        )
    if settings.host in ("0.0.0.0", "*"):
        raise ConfigError(
            "controller.host: with controller.hosts, give an address at which they find this "
            f"machine, not {settings.host}"
        )


def check_ipv4(setting: str, host: str) -> None:
    """Raises ConfigError for the address of another machine that is IPv6, or a name that has no
    other one: our sockets are IPv4's. A name that nobody knows may still get known."""
    if not host:
        return
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return
    if all(family == socket.AF_INET6 for family, *_ in found):
        raise ConfigError(
            f"{setting}: {host} is an IPv6 address, and a run uses IPv4; give an IPv4 address of "
            "that machine"
        )


def check_hosts(config: Config) -> None:
    """Raises ConfigError when what listens here would do so at an address that is another
    machine's, or nobody's."""
    for host in config.controller.hosts:
        check_ipv4("controller.hosts", host)
    hosts = {"controller.host": config.controller.host, "dashboard.host": config.dashboard.host}
    if config.learner.launch:
        check_ipv4("learner.host", config.learner.host)
    else:
        hosts["learner.host"] = (
            config.learner.host
        )  # empty: any address will do here, and controller.host is taken
    for name, host in hosts.items():
        with socket.socket() as probe:
            try:
                probe.bind((host, 0))
            except (OSError, UnicodeError):  # UnicodeError: what can be no name
                raise ConfigError(
                    f"{name}: {host!r} is no IPv4 address of this machine; give one that is, or "
                    "0.0.0.0 for all"
                ) from None


class _Machine(NamedTuple):
    """Where a shard and its engines are."""

    address: str  # for actors
    near: str = "127.0.0.1"  # where the shard reaches its engines
    away: bool = False  # not here


def choose_endpoints(config: Config) -> Endpoints:
    """Fixed ports where settings fix them (and are free), free ones elsewhere.

    Raises ConfigError for one that is not, and for a host that is not this machine.
    """
    check_hosts(config)
    host = config.controller.host
    learner_away = bool(config.learner.launch)
    near = (
        host if learner_away else "127.0.0.1"
    )  # where the learner reaches supervisor and controller
    there = config.learner.host or host
    shards = config.controller.shards
    others = config.controller.hosts
    machines = [
        _Machine(host),
        *([_Machine(other, other, True) for other in others] or [_Machine(host)] * (shards - 1)),
    ]  # of each shard
    turns = [
        f"tcp://{at.address}:{_port(at.address, config.controller.port, n, 'controller.port', at.away)}"
        for n, at in enumerate(machines)
    ]
    signals = [
        _port("127.0.0.1", config.controller.signals_port, n, "controller.signals_port", at.away)
        for n, at in enumerate(machines)
    ]
    dealt = enumerate(
        machines[number % shards] for number in range(config.engine.count)
    )  # as Endpoints.shard_of has it
    engines = [
        f"http://{at.near}:{_port(at.near, config.engine.port, number, 'engine.port', at.away)}"
        for number, at in dealt
    ]
    joined = host if others else "127.0.0.1"  # where shards reach the controller
    return Endpoints(
        actors=turns[0],
        learner=f"tcp://{near}:{free_port(near, 0, 'controller.host')}",
        signals=[f"tcp://127.0.0.1:{port}" for port in signals],
        trajectories=f"tcp://{there}:{_port(there, config.learner.port, 0, 'learner.port', learner_away)}",
        stats=f"tcp://{near}:{free_port(near, 0, 'controller.host')}",
        dashboard=f"http://{config.dashboard.host}:{free_port(config.dashboard.host, config.dashboard.port, 'dashboard.port')}",
        weights=f"tcp://{there}:{_port(there, 0, 0, 'learner.host', learner_away)}",
        engines=[url.rstrip("/") for url in config.engine.urls] or engines,
        shards=f"tcp://{joined}:{free_port(joined, 0, 'controller.host')}" if shards > 1 else "",
        turns=turns[1:],
    )


def _port(host: str, first: int, number: int, setting: str, away: bool) -> int:
    """The `number`-th port from `first` on, or any free one for 0.

    `away`: on another machine, where whether it is free cannot be found out from here.
    """
    if away:
        return first + number if first else UNASSIGNED[next(_tried) % len(UNASSIGNED)]
    return free_port(host, first + number if first else 0, setting)


def free_port(host: str = "127.0.0.1", port: int = 0, setting: str = "") -> int:
    """`port` if it is free at `host`, or any free one for 0.

    Raises ConfigError naming `setting` when it is not free.
    """
    while True:
        candidate = port or UNASSIGNED[next(_tried) % len(UNASSIGNED)]
        if not port and not reserve_port(candidate):
            continue
        with socket.socket() as probe:
            probe.setsockopt(
                socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
            )  # as ZeroMQ does: a port of a run that has just ended is free
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

    False when another run has reserved it.

    The reservation is a name in Linux's abstract socket namespace, which is a network namespace's
    own, as ports are, and ends with this process. Elsewhere nothing is reserved.
    """
    if sys.platform != "linux":
        return True
    reservation = socket.socket(socket.AF_UNIX)
    try:
        reservation.bind(f"\0foray-port-{port}")
    except OSError:
        reservation.close()
        return False
    _reserved.append(reservation)
    return True
