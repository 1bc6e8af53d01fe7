"""Who may talk to a run, over connections that nobody else can read: ZeroMQ's CURVE, with keys in
files.

`run.py keys DIR` makes a directory of them:

    run.key, run.key_secret          of the run's own processes
    allowed/NAME.key                 of those that may play for it: one whose file is removed is refused from its next connection on
    NAME/run.key, NAME.key_secret    to be copied to a machine of that name, for `run.py actor --keys NAME`

A socket of domain "run" admits the run's own processes alone, one of domain "actors" those that may
play, too. Without keys sockets are open, and must not be reachable from other machines
(`is_loopback`).
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import stat
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

import zmq
import zmq.asyncio
import zmq.auth
from zmq.auth.asyncio import AsyncioAuthenticator

from protocol.codec import MAX_FRAME
from protocol.files import atomic_write

log = logging.getLogger(__name__)

RUN = "run"
ALLOWED = "allowed"
SECRET = ".key_secret"
KEY_LENGTH = 40  # in Z85

HEARTBEAT_SECONDS = 2.0
"""Of those who do not know the run's (actor.heartbeat_seconds)."""

SILENT_AFTER = 3
"""Heartbeats in which nothing comes over a connection, after which it is made anew: before an
actor, or a shard, is missed."""

LOST_AFTER = 5
"""Heartbeats an actor, or a shard, may miss."""

Domain = Literal["run", "actors"]


class KeysError(ValueError):
    """Keys are missing, or not as they must be; the message says which, and what makes them."""


class CurveKeys(NamedTuple):
    """What a process identifies itself with, and knows others by. All in Z85, 40 bytes."""

    public: bytes
    secret: bytes
    run: bytes  # public key of the run's own processes
    allowed: Path  # directory of the public keys of those that may play


def make_keys(directory: Path, name: str) -> list[Path]:
    """New keys for a machine called `name`, and for the run if there are none yet; returns the
    directories and files that were made.

    Raises KeysError for a name that is taken, or no name of a file.
    """
    if name in (RUN, ALLOWED, ".", "..") or name != Path(name).name:
        raise KeysError(f"{name!r} cannot be the name of a machine's keys; use letters and numbers")
    if (directory / name).exists():
        raise KeysError(
            f"{directory / name} exists; give another name, or remove it and "
            f"{directory / ALLOWED / f'{name}.key'} first"
        )
    made = []
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    (directory / ALLOWED).mkdir(mode=0o700, exist_ok=True)
    if not (directory / f"{RUN}{SECRET}").exists():
        made += _pair(directory, RUN)
    (directory / name).mkdir(mode=0o700)
    _pair(directory / name, name)
    (directory / name / f"{name}.key").rename(directory / ALLOWED / f"{name}.key")
    atomic_write(
        directory / name / f"{RUN}.key", (directory / f"{RUN}.key").read_bytes(), mode=0o600
    )
    return [*made, directory / ALLOWED / f"{name}.key", directory / name]


def _pair(directory: Path, name: str) -> list[Path]:
    """A pair of keys, which nobody else could read at any time, whatever the umask."""
    made = []
    with tempfile.TemporaryDirectory(prefix=".keys-", dir=directory) as private:  # its mode is 0700
        for file in map(Path, zmq.auth.create_certificates(private, name)):
            file.chmod(0o600)
            made.append(file.rename(directory / file.name))
    return made


def load_keys(directory: str) -> CurveKeys | None:
    """The keys in a directory that `make_keys` made, the run's or a machine's; None for "".

    Raises KeysError.
    """
    if not directory:
        return None
    place = Path(directory)
    secrets = sorted(place.glob(f"*{SECRET}"))
    if len(secrets) != 1 or not (place / f"{RUN}.key").is_file():
        raise KeysError(
            f"{place} holds no keys; `run.py keys {place}` makes them, and of a machine's "
            "directory there all is needed"
        )
    (secret,) = secrets
    if secret.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise KeysError(f"{secret} can be read by others; chmod 600 {secret}")
    try:
        public, private = zmq.auth.load_certificate(secret)
        run, _ = zmq.auth.load_certificate(place / f"{RUN}.key")
    except ValueError as error:
        raise KeysError(f"{place}: {error}") from None
    if private is None:
        raise KeysError(f"{secret} holds no secret key")
    return CurveKeys(public, private, run, place / ALLOWED)


def is_loopback(endpoint: str) -> bool:
    """Whether an address, a URL or ZeroMQ's, is of this machine alone."""
    host = urlsplit(endpoint).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def bind(
    socket: zmq.Socket,
    endpoint: str,
    keys: CurveKeys | None,
    domain: Domain,
    heartbeat_seconds: float = HEARTBEAT_SECONDS,
    most_waiting: int = 0,
) -> None:
    """Listen.

    Frames that are too large for any message end their connection before memory is taken for them;
    a peer that connects again under its name takes the place of its old connection
    (protocol/router.py). `most_waiting`: messages of a peer that wait to be read, 0: any number.
    """
    _watch_over(socket, heartbeat_seconds, most_waiting)
    if socket.type == zmq.ROUTER:
        socket.set(zmq.ROUTER_HANDOVER, 1)
    if keys is not None:
        socket.set(zmq.CURVE_SERVER, 1)
        socket.set(zmq.CURVE_SECRETKEY, keys.secret)
        socket.set(zmq.ZAP_DOMAIN, domain.encode())
        socket.set(zmq.ZAP_ENFORCE_DOMAIN, 1)  # without a gatekeeper nobody comes in
    socket.bind(endpoint)


def connect(
    socket: zmq.Socket,
    endpoint: str,
    keys: CurveKeys | None,
    heartbeat_seconds: float = HEARTBEAT_SECONDS,
) -> None:
    """Connect to a socket that the run has bound, again and again if need be."""
    _watch_over(socket, heartbeat_seconds, 0)
    socket.set(
        zmq.CONNECT_TIMEOUT, _milliseconds(LOST_AFTER * heartbeat_seconds)
    )  # else the system's: two minutes
    if keys is not None:
        socket.set(zmq.CURVE_SERVERKEY, keys.run)
        socket.set(zmq.CURVE_PUBLICKEY, keys.public)
        socket.set(zmq.CURVE_SECRETKEY, keys.secret)
    socket.connect(endpoint)


def _watch_over(socket: zmq.Socket, heartbeat_seconds: float, most_waiting: int) -> None:
    """Have both ends ask whether the other one is there, and give a connection up over which
    nothing comes: one end may have lost it without the other one hearing of it (NAT that forgets, a
    machine that was suspended, another address).

    ZeroMQ's own threads ask and answer, however busy the process is, but only while they read, and
    a queue that is full makes them stop: so ZeroMQ's bound of 1,000 messages goes. What waits is
    bounded by what peers were given to do.
    """
    socket.set(zmq.MAXMSGSIZE, MAX_FRAME)
    socket.set(zmq.HEARTBEAT_IVL, _milliseconds(heartbeat_seconds))
    socket.set(zmq.HEARTBEAT_TIMEOUT, _milliseconds(SILENT_AFTER * heartbeat_seconds))
    socket.set(zmq.RCVHWM, most_waiting)


def _milliseconds(seconds: float) -> int:
    return max(1, round(1000 * seconds))


@contextlib.asynccontextmanager
async def admit_key_holders(
    context: zmq.asyncio.Context, keys: CurveKeys | None
) -> AsyncIterator[None]:
    """While inside, the sockets that the context binds admit whom they should."""
    if keys is None:
        yield
        return
    keeper = AsyncioAuthenticator(context)
    keeper.start()
    admits = _Admits(keys)
    for domain in ("run", "actors"):
        keeper.configure_curve_callback(domain, admits)
    try:
        yield
    finally:
        keeper.stop()
        await asyncio.sleep(
            0
        )  # its task lets go of the descriptor before another socket may get that


class _Admits:
    """Asked by pyzmq at every handshake.

    Never raises: that would end pyzmq's task, and nobody would be answered any more.
    """

    def __init__(self, keys: CurveKeys) -> None:
        self._keys = keys
        self._warned: set[Path] = set()  # each is logged once

    def callback(self, domain: str, key: bytes) -> bool:
        if key == self._keys.run:
            return True
        return domain == "actors" and any(key == known for known in self._allowed())

    def _allowed(self) -> Iterator[bytes]:
        """The keys in the directory of now, but for what is none: half copied, not ours to read,
        removed just now."""
        try:
            for file in self._keys.allowed.iterdir():
                if file.suffix == ".key":
                    yield from self._public(file)
        except OSError as error:
            self._warn(self._keys.allowed, error)

    def _public(self, file: Path) -> Iterator[bytes]:
        try:
            public, _ = zmq.auth.load_certificate(file)
            if len(public) != KEY_LENGTH:
                raise ValueError(f"a key has {KEY_LENGTH} characters, this one {len(public)}")
            yield public
        except (
            OSError,
            ValueError,
            IndexError,
        ) as error:  # IndexError: a line that ends before its "="
            self._warn(file, error)

    def _warn(self, path: Path, error: Exception) -> None:
        if path not in self._warned:
            self._warned.add(path)
            log.warning("%s admits nobody, since it cannot be read as a key: %s", path, error)
