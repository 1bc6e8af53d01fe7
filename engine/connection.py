"""HTTP to an engine: its errors, connections that notice a lost end, answers of any size.

Nothing here is told by the environment (http_proxy, .netrc): an engine is asked at its own address.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator

import aiohttp
import msgspec

from engine.constants import ALIVE_HEADER, RUN_HEADER
from engine.plugin.auth import TAKEN_STATUS, bearer

KEEP_ALIVE_SECONDS = 3.0
"""How long an idle connection is kept.

vLLM's server closes it after 5 s, and a request must not meet the closing.
"""
PROBES = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 25_000}
"""Socket options (seconds, seconds, times, milliseconds) of a connection.

One whose other end is silently gone breaks within 25 s.
"""
CONNECT_SECONDS = 10.0
SILENT_SECONDS = 30.0
"""Silence after which a stream is lost that promised signs of life.

Three of them (auth.ALIVE_SECONDS) are missing then.
"""
SILENT_PARTS = 3
"""Waits that make up SILENT_SECONDS.

When this process itself has stood still, only one of them is over at once.
"""
MAX_ANSWER_BYTES = 256 << 20
"""Largest answer, or event of a stream: a million tokens with their log-probs."""
MAX_REASON_BYTES = 64 << 10
"""Bytes that are read of an answer that is an error."""
REASON_CHARACTERS = 500
MIN_RETRY_SECONDS = 0.1
MAX_RETRY_SECONDS = 30.0
"""Bounds of the wait that an engine, or a proxy before it, may ask for."""
RELAYED = (502, 503, 504)
"""Statuses of a proxy that got no answer. vLLM, too, says 503 when it can do nothing."""


class EngineError(RuntimeError):
    """The engine refused, failed, or was not there.

    The message says what was asked and what came back.
    """


class EngineUnreachable(EngineError):
    """No answer arrived: the engine may or may not have done what was asked."""


class EngineBusy(EngineUnreachable):
    """The engine is busy, and says that it may be asked again in `seconds`."""

    def __init__(self, message: str, seconds: float) -> None:
        super().__init__(message)
        self.seconds = seconds


class EngineTaken(EngineError):
    """Another run uses the engine."""


class NonFiniteError(EngineError):
    """The model computed NaN or infinity, so that what was sampled is no sample of it."""


def identity_headers(key: str, run: str) -> dict[str, str]:
    """Make the headers that tell an engine its key, and the run whose it is to be, if given."""
    headers = {}
    if key:
        headers["Authorization"] = bearer(key)
    if run:
        headers[RUN_HEADER] = run
    return headers


def new_session(headers: dict[str, str], *, reuses: bool) -> aiohttp.ClientSession:
    """Make a session for one kind of calls; `reuses`: connections are kept between calls."""
    connector = aiohttp.TCPConnector(
        limit=0,
        socket_factory=_probing_socket,
        keepalive_timeout=KEEP_ALIVE_SECONDS if reuses else None,
        force_close=not reuses,
    )
    # No total timeout: a turn may take minutes, and whoever waits for an update has a deadline of
    # his own.
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS)
    return aiohttp.ClientSession(
        connector=connector, timeout=timeout, headers=headers, trust_env=False
    )


def _probing_socket(address: tuple) -> socket.socket:
    """Make a socket that asks now and then whether the other end is there.

    `address` is asyncio's address information (family, type, protocol, ...).
    """
    probing = socket.socket(*address[:3])
    probing.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in PROBES.items():
        if hasattr(socket, name):  # not everywhere
            probing.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return probing


class EventReader:
    """Reads the events of a text/event-stream from pieces as they come."""

    def __init__(self, max_event_bytes: int = MAX_ANSWER_BYTES) -> None:
        self._max_event_bytes = max_event_bytes
        self._open_line = bytearray()
        self._searched_bytes = 0  # of the open line: they hold no newline
        self._open_event: list[bytes] = []  # data of an event that has not ended
        self._open_event_bytes = 0

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """Take a piece, and yield the data of the events that end in it.

        Raises ValueError for an event that is too large.
        """
        self._open_line += piece
        start = 0
        end = self._open_line.find(b"\n", self._searched_bytes)
        while end >= 0:
            line = bytes(self._open_line[start:end])
            start = end + 1
            yield from self._take_line(line.removesuffix(b"\r"))
            end = self._open_line.find(b"\n", start)
        del self._open_line[:start]
        self._searched_bytes = len(self._open_line)
        if self._searched_bytes + self._open_event_bytes > self._max_event_bytes:
            raise ValueError(f"an event of more than {self._max_event_bytes} bytes")

    def _take_line(self, line: bytes) -> Iterator[bytes]:
        """Take a line, which is a comment, a field, or the end of an event."""
        if not line and self._open_event:
            data = b"\n".join(self._open_event)
            self._open_event = []
            self._open_event_bytes = 0
            yield data
        elif line.startswith(b"data:"):
            self._open_event.append(line[len(b"data:") :].removeprefix(b" "))
            self._open_event_bytes += len(line)


async def read_events(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Read the data of each event of a streamed answer.

    Raises EngineUnreachable when a stream is silent that promised signs of life.
    """
    reader = EventReader()
    part_seconds = None
    if ALIVE_HEADER in response.headers:
        part_seconds = SILENT_SECONDS / SILENT_PARTS
    while True:
        piece = await _read_piece(response, part_seconds)
        if not piece:
            return
        for data in reader.feed(piece):
            yield data


async def _read_piece(response: aiohttp.ClientResponse, part_seconds: float | None) -> bytes:
    """Read the next piece of a body; an empty one at its end."""
    for _ in range(SILENT_PARTS):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(part_seconds):
                return await response.content.readany()
    raise EngineUnreachable(f"the stream from {response.url} was silent for {SILENT_SECONDS:g} s")


async def read_at_most(response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    """Read the first `max_bytes` of the body, or all of it."""
    pieces = []
    size = 0
    async for piece in response.content.iter_any():
        pieces.append(piece)
        size += len(piece)
        if size >= max_bytes:
            break
    return b"".join(pieces)[:max_bytes]


async def check_status(what: str, response: aiohttp.ClientResponse) -> None:
    """Raise the EngineError that an answer stands for, unless its status is 200.

    `what` is the method and address that were asked.
    """
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
            f"{what}: {read_reason(await read_at_most(response, MAX_REASON_BYTES))} (engine.urls)"
        )
    message = f"{what}: {status} {read_reason(await read_at_most(response, MAX_REASON_BYTES))}"
    retry_after = response.headers.get("Retry-After")
    if status == 429 or (status == 503 and retry_after is not None):
        raise EngineBusy(message, parse_retry_seconds(retry_after))
    if status in RELAYED:
        raise EngineUnreachable(message)
    raise EngineError(message)


def parse_retry_seconds(retry_after: str | None) -> float:
    """Parse the header Retry-After; a second where it names a date, or nothing."""
    if retry_after is None or not retry_after.isdecimal():
        return 1.0
    return min(max(float(retry_after), MIN_RETRY_SECONDS), MAX_RETRY_SECONDS)


def read_reason(raw: bytes) -> str:
    """Read the message of an error: vLLM's JSON, or the beginning of the text on one line."""
    try:
        answer = msgspec.json.decode(raw)
        error = answer.get("error", answer)
        if isinstance(error, dict):
            error = error.get("message", error)
        text = str(error)
    except (msgspec.DecodeError, AttributeError):
        text = " ".join(raw.decode(errors="replace").split())
    return text[:REASON_CHARACTERS]
