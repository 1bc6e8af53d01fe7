"""HTTP to an engine: what can go wrong by name, connections that find out when the other end is
gone, answers and events of any size.

Nothing here is told by the environment (http_proxy, .netrc): an engine is asked at its own address.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator

import aiohttp
import msgspec

from engine.constants import ALIVE_HEADER
from engine.plugin.auth import TAKEN_STATUS

KEEP_ALIVE = 3.0
"""Seconds an idle connection is kept: fewer than the 5 after which vLLM's server closes it, or a
request may meet the closing."""
PROBES = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 25_000}
"""Socket options (seconds, seconds, times, milliseconds) by which a connection whose other end is
silently gone breaks within 25 s."""
CONNECT_SECONDS = 10.0
SILENT_SECONDS = 30.0
"""Silence after which a stream is lost that promised signs of life: three of them
(gate.ALIVE_SECONDS) are missing."""
SILENT_PARTS = 3
"""Waits that make up SILENT_SECONDS: when this process itself has stood still, only one of them is
over at once."""
MAX_ANSWER_BYTES = 256 << 20
"""Size of an answer, or of an event of a stream: those of a million tokens, with their
log-probs."""
MAX_REASON_BYTES = 64 << 10
"""How much of an answer that is an error is read."""
REASON_CHARACTERS = 500
MIN_RETRY_SECONDS = 0.1
MAX_RETRY_SECONDS = 30.0
"""Bounds of the wait that an engine (or what stands before it) may ask for."""
RELAYED = (502, 503, 504)
"""Statuses of a proxy that got no answer. vLLM, too, says 503 when it can do nothing."""


class EngineError(RuntimeError):
    """The engine refused, failed, or was not there; the message says what was asked and what came
    back."""


class EngineUnreachable(EngineError):
    """No answer arrived: the engine may or may not have done what was asked."""


class EngineBusy(EngineUnreachable):
    """It may be asked again in `seconds`, it says."""

    def __init__(self, message: str, seconds: float) -> None:
        super().__init__(message)
        self.seconds = seconds


class EngineTaken(EngineError):
    """Another run uses the engine."""


class NonFiniteError(EngineError):
    """The model computed NaN or infinity, so that what was sampled is no sample of it."""


def new_session(headers: dict[str, str], *, reuses: bool) -> aiohttp.ClientSession:
    """A session for one kind of calls. `reuses`: connections are kept between calls."""
    kept = {"keepalive_timeout": KEEP_ALIVE} if reuses else {"force_close": True}
    connector = aiohttp.TCPConnector(limit=0, socket_factory=_probing_socket, **kept)
    # No total timeout: a turn may take minutes, and whoever waits for an update has a deadline of
    # his own.
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS)
    return aiohttp.ClientSession(
        connector=connector, timeout=timeout, headers=headers, trust_env=False
    )


def _probing_socket(address: tuple) -> socket.socket:
    """A socket of asyncio's address information (family, type, protocol, ...) that asks now and
    then whether the other end is there."""
    made = socket.socket(*address[:3])
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in PROBES.items():
        if hasattr(socket, name):  # not everywhere
            made.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return made


class EventReader:
    """The events of a text/event-stream, from pieces as they come."""

    def __init__(self, most_bytes: int = MAX_ANSWER_BYTES) -> None:
        """`most_bytes`: of an event."""
        self._most_bytes = most_bytes
        self._rest = bytearray()  # of a line that has not ended
        self._looked_at = 0  # bytes of it
        self._data: list[bytes] = []  # of an event that has not ended
        self._data_bytes = 0

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """The data of the events that end in this piece.

        Raises ValueError for one that is too large.
        """
        self._rest += piece
        start = 0
        while (end := self._rest.find(b"\n", max(start, self._looked_at))) >= 0:
            line = bytes(self._rest[start:end])
            start = end + 1
            yield from self._take(line.removesuffix(b"\r"))
        del self._rest[:start]
        self._looked_at = len(self._rest)
        if self._looked_at + self._data_bytes > self._most_bytes:
            raise ValueError(f"an event of more than {self._most_bytes} bytes")

    def _take(self, line: bytes) -> Iterator[bytes]:
        """A line: a comment, a field, or the end of an event."""
        if not line and self._data:
            data = b"\n".join(self._data)
            self._data = []
            self._data_bytes = 0
            yield data
        elif line.startswith(b"data:"):
            self._data.append(line[len(b"data:") :].removeprefix(b" "))
            self._data_bytes += len(line)


async def events(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """The data of each event of a streamed answer.

    Raises EngineUnreachable when one that is never silent is.
    """
    reader = EventReader()
    part_seconds = SILENT_SECONDS / SILENT_PARTS if ALIVE_HEADER in response.headers else None
    while piece := await _next_piece(response, part_seconds):
        for data in reader.feed(piece):
            yield data


async def _next_piece(response: aiohttp.ClientResponse, part_seconds: float | None) -> bytes:
    """What comes next of a body; nothing at its end."""
    for _ in range(SILENT_PARTS):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(part_seconds):
                return await response.content.readany()
    raise EngineUnreachable(f"the stream from {response.url} was silent for {SILENT_SECONDS:g} s")


async def read_at_most(response: aiohttp.ClientResponse, most_bytes: int) -> bytes:
    """The first `most_bytes` of the body, or all of it."""
    pieces = []
    size = 0
    async for piece in response.content.iter_any():
        pieces.append(piece)
        size += len(piece)
        if size >= most_bytes:
            break
    return b"".join(pieces)[:most_bytes]


async def check_status(what: str, response: aiohttp.ClientResponse) -> None:
    """Raises the EngineError that an answer to `what` (method and address) stands for, unless it is
    200."""
    status = response.status
    if status == 200:
        return
    if 300 <= status < 400:
        place = response.headers.get("Location", "nowhere")
        raise EngineError(
            f"{what}: {status}, it is redirected to {place}; give the address that answers "
            "itself (engine.urls)"
        )
    if status == TAKEN_STATUS:
        raise EngineTaken(
            f"{what}: {reason_of(await read_at_most(response, MAX_REASON_BYTES))} (engine.urls)"
        )
    message = f"{what}: {status} {reason_of(await read_at_most(response, MAX_REASON_BYTES))}"
    asked = response.headers.get("Retry-After")
    if status == 429 or (status == 503 and asked is not None):
        raise EngineBusy(message, _seconds_of(asked))
    raise (EngineUnreachable if status in RELAYED else EngineError)(message)


def _seconds_of(asked: str | None) -> float:
    """The wait that a header Retry-After asks for; a second where it names a date, or nothing."""
    if asked is None or not asked.isdecimal():
        return 1.0
    return min(max(float(asked), MIN_RETRY_SECONDS), MAX_RETRY_SECONDS)


def reason_of(raw: bytes) -> str:
    """The message in an error answer: vLLM's JSON, or the beginning of the text on one line."""
    try:
        answer = msgspec.json.decode(raw)
        error = answer.get("error", answer)
        text = str(error.get("message", error) if isinstance(error, dict) else error)
    except (msgspec.DecodeError, AttributeError):
        text = " ".join(raw.decode(errors="replace").split())
    return text[:REASON_CHARACTERS]
