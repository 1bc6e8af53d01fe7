"""Keys that say who may talk to a run, over connections that nobody else can read.

Connections are ZeroMQ's with CURVE; keys are files.

`run.py keys DIR` makes a directory of them:

    run.key, run.key_secret          of the run's own processes
    allowed/NAME.key                 of those that may play for it
    NAME/run.key, NAME.key_secret    to be copied to a machine of that name, for
                                     `run.py actor --keys NAME`

A machine whose file in allowed/ is removed is refused from its next connection on.

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
"""Heartbeat of processes that do not know the run's (actor.heartbeat_seconds)."""

SILENT_AFTER = 3
"""Heartbeats without a word over a connection, after which it is made anew.

They are fewer than those after which an actor, or a shard, is missed.
"""

LOST_AFTER = 5
"""Heartbeats an actor, or a shard, may miss."""

Domain = Literal["run", "actors"]


class KeysError(ValueError):
    """Keys are missing, or not as they must be; the message says which, and what makes them."""


class CurveKeys(NamedTuple):
    """Keys that a process identifies itself with, and knows others by, each 40 bytes in Z85."""

    public: bytes
    secret: bytes
    run: bytes  # public key of the run's own processes
    allowed: Path  # directory of the public keys of those that may play


def make_keys(directory: Path, name: str) -> list[Path]:
    """Make keys for a machine called `name`, and for the run if there are none yet.

    Returns the directories and files that were made. Raises KeysError for a name that is taken, or
    that is no name of a file.
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
        made += _make_pair(directory, RUN)
    (directory / name).mkdir(mode=0o700)
    _make_pair(directory / name, name)
    (directory / name / f"{name}.key").rename(directory / ALLOWED / f"{name}.key")
    atomic_write(
        directory / name / f"{RUN}.key", (directory / f"{RUN}.key").read_bytes(), mode=0o600
    )
    return [*made, directory / ALLOWED / f"{name}.key", directory / name]


def _make_pair(directory: Path, name: str) -> list[Path]:
    """Make a pair of keys, which nobody else could read at any time, whatever the umask."""
    made = []
    # The mode of a temporary directory is 0700.
    with tempfile.TemporaryDirectory(prefix=".keys-", dir=directory) as private:
        for file in map(Path, zmq.auth.create_certificates(private, name)):
            file.chmod(0o600)
            made.append(file.rename(directory / file.name))
    return made


def load_keys(directory: str) -> CurveKeys | None:
    """Load the keys in a directory that `make_keys` made, the run's or a machine's; None for "".

    Raises KeysError.
    """
    if not directory:
        return None
    keys_dir = Path(directory)
    secrets = sorted(keys_dir.glob(f"*{SECRET}"))
    if len(secrets) != 1 or not (keys_dir / f"{RUN}.key").is_file():
        raise KeysError(
            f"{keys_dir} holds no keys; `run.py keys {keys_dir}` makes those of a run, and "
            "`run.py keys KEYS NAME` makes KEYS/NAME for a machine, to be copied there as it is"
        )
    (secret,) = secrets
    if secret.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise KeysError(f"{secret} can be read by others; chmod 600 {secret}")
    try:
        public, private = zmq.auth.load_certificate(secret)
        run, _ = zmq.auth.load_certificate(keys_dir / f"{RUN}.key")
    except ValueError as error:
        raise KeysError(f"{keys_dir}: {error}") from None
    if private is None:
        raise KeysError(f"{secret} holds no secret key")
    return CurveKeys(public, private, run, keys_dir / ALLOWED)


def is_loopback(endpoint: str) -> bool:
    """Say whether an address, a URL or ZeroMQ's, is of this machine alone."""
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
    max_waiting: int = 0,
) -> None:
    """Bind a socket to an endpoint.

    Frames that are too large for any message end their connection before memory is taken for them.
    A peer that connects again under its name takes the place of its old connection
    (protocol/router.py). `max_waiting` messages of a peer may wait to be read, 0: any number.
    """
    _set_limits(socket, heartbeat_seconds, max_waiting)
    if socket.type == zmq.ROUTER:
        socket.set(zmq.ROUTER_HANDOVER, 1)
    if keys is not None:
        socket.set(zmq.CURVE_SERVER, 1)
        socket.set(zmq.CURVE_SECRETKEY, keys.secret)
        socket.set(zmq.ZAP_DOMAIN, domain.encode())
        socket.set(zmq.ZAP_ENFORCE_DOMAIN, 1)  # without `admit_key_holders` nobody comes in
    socket.bind(endpoint)


def connect(
    socket: zmq.Socket,
    endpoint: str,
    keys: CurveKeys | None,
    heartbeat_seconds: float = HEARTBEAT_SECONDS,
) -> None:
    """Connect to a socket that the run has bound, again and again if need be."""
    _set_limits(socket, heartbeat_seconds, 0)
    # The system's own is two minutes.
    socket.set(zmq.CONNECT_TIMEOUT, _milliseconds(LOST_AFTER * heartbeat_seconds))
    if keys is not None:
        socket.set(zmq.CURVE_SERVERKEY, keys.run)
        socket.set(zmq.CURVE_PUBLICKEY, keys.public)
        socket.set(zmq.CURVE_SECRETKEY, keys.secret)
    socket.connect(endpoint)


def _set_limits(socket: zmq.Socket, heartbeat_seconds: float, max_waiting: int) -> None:
    """Have both ends ask whether the other one is there, and give up a silent connection.

    One end may have lost it without the other one hearing of it (NAT that forgets, a machine that
    was suspended, another address).

    ZeroMQ's own threads ask and answer, however busy the process is, but only while they read, and
    a queue that is full makes them stop: so ZeroMQ's bound of 1,000 messages goes. What waits is
    bounded by what peers were given to do.
    """
    socket.set(zmq.MAXMSGSIZE, MAX_FRAME)
    socket.set(zmq.HEARTBEAT_IVL, _milliseconds(heartbeat_seconds))
    socket.set(zmq.HEARTBEAT_TIMEOUT, _milliseconds(SILENT_AFTER * heartbeat_seconds))
    socket.set(zmq.RCVHWM, max_waiting)


def _milliseconds(seconds: float) -> int:
    return max(1, round(1000 * seconds))


@contextlib.asynccontextmanager
async def admit_key_holders(
    context: zmq.asyncio.Context, keys: CurveKeys | None
) -> AsyncIterator[None]:
    """Have the sockets that the context binds admit whom they should, while inside."""
    if keys is None:
        yield
        return
    authenticator = AsyncioAuthenticator(context)
    authenticator.start()
    verifier = _KeyVerifier(keys)
    for domain in ("run", "actors"):
        authenticator.configure_curve_callback(domain, verifier)
    try:
        yield
    finally:
        authenticator.stop()
        # Its task lets go of the descriptor before another socket may get that.
        await asyncio.sleep(0)


class _KeyVerifier:
    """Callback of pyzmq at every handshake.

    It never raises: that would end pyzmq's task, and nobody would be answered any more.
    """

    def __init__(self, keys: CurveKeys) -> None:
        self._keys = keys
        self._warned: set[Path] = set()  # each is logged once

    def callback(self, domain: str, key: bytes) -> bool:
        if key == self._keys.run:
            return True
        return domain == "actors" and key in self._allowed_keys()

    def _allowed_keys(self) -> Iterator[bytes]:
        """Read the keys in the directory as it is now.

        Files that are no keys are left out: half copied, not ours to read, removed just now.
        """
        try:
            for file in self._keys.allowed.iterdir():
                if file.suffix == ".key":
                    yield from self._read_public(file)
        except OSError as error:
            self._warn(self._keys.allowed, error)

    def _read_public(self, file: Path) -> Iterator[bytes]:
        try:
            public, _ = zmq.auth.load_certificate(file)
            if len(public) != KEY_LENGTH:
                raise ValueError(f"a key has {KEY_LENGTH} characters, this one {len(public)}")
            yield public
        except (OSError, ValueError, IndexError) as error:
            # pyzmq raises IndexError for a line that ends before its "=".
            self._warn(file, error)

    def _warn(self, path: Path, error: Exception) -> None:
        if path not in self._warned:
            self._warned.add(path)
            log.warning("%s admits nobody, since it cannot be read as a key: %s", path, error)
