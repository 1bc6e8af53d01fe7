"""The engine's end of the signal connection: frames out, commands in. Never blocks generation."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import zmq

from controller.rules.scores import Signal
from controller.rules.thinking import contains_tag, ends_within_tag
from protocol.arrays import FLOAT32, INT32, pack
from protocol.codec import FrameReader, encode
from protocol.messages import ForceTokens, SignalFrame
from protocol.security import HEARTBEAT_SECONDS, connect, load_keys

log = logging.getLogger(__name__)

DTYPES = (INT32, FLOAT32, FLOAT32, FLOAT32, INT32, INT32)
"""Element types of a frame's columns, after the turns."""

HIGH_WATER = 1000
"""Frames that wait for a controller that does not read, before further ones are dropped."""


class SignalRows(NamedTuple):
    """Signals of one token of each of some turns.

    They are the columns of a SignalFrame, in the order of Signal's fields.
    """

    turn_ids: list[str]
    position: np.ndarray  # int32 [N], of the token about to be sampled
    entropy: np.ndarray  # float32 [N], nats
    confidence: np.ndarray  # float32 [N]
    top_log_prob: np.ndarray  # float32 [N]
    forced: np.ndarray  # int32 [N], the token forced at this position, or -1
    previous: np.ndarray  # int32 [N], the token at position - 1, or -1

    def signals(self) -> Iterator[Signal]:
        """Yield the rows as signals, which rules take."""
        return map(Signal, *(column.tolist() for column in self[1:]))

    def pick(self, rows: list[int]) -> SignalRows:
        """Return some of the rows alone."""
        return SignalRows([self.turn_ids[i] for i in rows], *(column[rows] for column in self[1:]))


def build_rows(turn_ids: Sequence[str], signals: Sequence[Signal]) -> SignalRows:
    """Build the rows of the signals of so many turns."""
    columns = [()] * len(Signal._fields)
    if signals:
        columns = zip(*signals, strict=True)
    return SignalRows(
        list(turn_ids),
        *(np.array(column, dtype) for column, dtype in zip(columns, DTYPES, strict=True)),
    )


def concat_rows(parts: Sequence[SignalRows]) -> SignalRows:
    """Concatenate the rows of the parts (at least one), in their order."""
    if len(parts) == 1:
        return parts[0]
    columns = zip(*(part[1:] for part in parts), strict=True)
    return SignalRows(
        [turn for part in parts for turn in part.turn_ids], *map(np.concatenate, columns)
    )


class SignalSocket:
    """A DEALER connected to the controller's ROUTER at `endpoint`.

    Not safe to share between threads.
    """

    def __init__(
        self,
        endpoint: str,
        context: zmq.Context | None = None,
        keys: str = "",
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
    ) -> None:
        self._socket = (context or zmq.Context.instance()).socket(
            zmq.DEALER, socket_class=zmq.Socket
        )
        self._socket.set(zmq.SNDHWM, HIGH_WATER)
        self._socket.set(zmq.LINGER, 0)
        connect(self._socket, endpoint, load_keys(keys), heartbeat_seconds)
        self._reader = FrameReader()
        self._step = 0
        self.dropped_frames = 0

    def send(self, rows: SignalRows) -> None:
        """Send one frame for this engine step; nothing is sent of no rows.

        It is dropped, and counted, when the controller is far behind.
        """
        if not rows.turn_ids:
            return
        columns = {
            name: pack(getattr(rows, name), dtype)
            for name, dtype in zip(Signal._fields, DTYPES, strict=True)
        }
        frame = SignalFrame(step=self._step, turn_ids=rows.turn_ids, **columns)
        self._step += 1
        try:
            self._socket.send(encode(frame), zmq.NOBLOCK)
        except zmq.Again:
            self.dropped_frames += 1
            if self.dropped_frames & (self.dropped_frames - 1) == 0:  # 1, 2, 4, 8, ...
                log.warning(
                    "%d signal frames dropped: the controller does not read them",
                    self.dropped_frames,
                )

    def receive_commands(self) -> Iterator[ForceTokens]:
        """Receive the commands to force tokens that have arrived."""
        while True:
            try:
                frame = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            message = self._reader.read(b"controller", frame)
            if isinstance(message, ForceTokens):
                yield message

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


class ForcedQueue:
    """Tokens to force at consecutive positions of one response.

    Bound to positions, not to calls: asking twice changes nothing.
    """

    def __init__(self) -> None:
        self._start = 0
        self._tokens: list[int] = []

    def add(self, position: int, tokens: Sequence[int]) -> None:
        """Force `tokens` from `position` on, or after what is still queued then."""
        if position >= self._start + len(self._tokens):
            self._start = position
            self._tokens = []
        self._tokens.extend(tokens)

    def at(self, position: int) -> int:
        """Return the token to force at `position`, or -1."""
        i = position - self._start
        if 0 <= i < len(self._tokens):
            return self._tokens[i]
        return -1


def takes_effect(command: ForceTokens, response: Sequence[int], vocabulary: int) -> bool:
    """Say whether to carry out a command.

    It is not carried out when the response already contains the tag `unless`, or has begun it, nor
    with tokens that do not exist.
    """
    if any(not 0 <= token < vocabulary for token in command.tokens):
        log.warning(
            "ignored a steer of turn %s: it forces tokens outside the vocabulary of %d",
            command.turn_id,
            vocabulary,
        )
        return False
    return not contains_tag(response, command.unless) and not ends_within_tag(
        response, command.unless
    )
