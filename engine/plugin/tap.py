"""The signal tap, whatever interface vLLM calls it by.

At each engine step it measures, decides, sends one frame and forces tokens.

The adapters, `signal_tap.py` and `signal_tap_v2.py`, know which request is in which row of the
logits; here are the turns.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

import msgspec
import numpy as np
import torch

from controller.rules.thinking import RuleSpec, ThinkingRule
from engine.constants import (
    KEYS_VARIABLE,
    RULE_KEY,
    TAP_ENDPOINT_VARIABLE,
    TAP_TOP_J_VARIABLE,
    TURN_ID_KEY,
)
from engine.plugin.signal_socket import ForcedQueue, SignalRows, SignalSocket, takes_effect
from engine.plugin.uncertainty import divide_by_temperature, uncertainty
from protocol.arrays import FLOAT32, INT32

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.config import VllmConfig

REMEMBERED = 4096
"""Turns that left the batch and are kept, with their forced tokens, in case they come back.

They are more than can be preempted at once.
"""


@dataclass
class Turn:
    """One watched request of the batch."""

    turn_id: str
    temperature: float
    output: list[int]  # response tokens so far
    stops: frozenset[int] = frozenset()  # tokens that end the response
    forced: ForcedQueue = field(default_factory=ForcedQueue)
    rule: ThinkingRule | None = None  # to be carried out here
    queue: list[int] = field(default_factory=list)  # what its intervention forces

    @property
    def position(self) -> int:
        """Position of the token about to be sampled."""
        return len(self.output)

    @property
    def previous(self) -> int:
        """Token before the one about to be sampled; -1 at the beginning of the response."""
        if not self.output:
            return -1
        return self.output[-1]

    @property
    def has_ended(self) -> bool:
        """True if the response is complete, so that what is sampled now is thrown away.

        With asynchronous scheduling the next step has begun before vLLM knows of an end token.
        """
        return self.previous in self.stops


AnyTurn = TypeVar("AnyTurn", bound=Turn)


class Batch(NamedTuple, Generic[AnyTurn]):
    """The turns of one step, and the rows of the logits they are in, ascending."""

    rows: list[int]
    turns: list[AnyTurn]

    def running(self) -> list[int]:
        """List the places, in this batch, of turns whose response is not complete."""
        return [place for place, turn in enumerate(self.turns) if not turn.has_ended]

    def pick(self, places: list[int]) -> Batch[AnyTurn]:
        """Return the batch of some of the turns, by their places in this one."""
        if len(places) == len(self.turns):
            return self
        return Batch([self.rows[i] for i in places], [self.turns[i] for i in places])


def build_batch(turns: Mapping[int, AnyTurn]) -> Batch[AnyTurn]:
    """Build the batch of turns by row."""
    rows = sorted(turns)
    return Batch(rows, [turns[row] for row in rows])


def turn_id_of(params: SamplingParams) -> str | None:
    """Return the id of the turn that a request is of; None: it is not watched."""
    return (params.extra_args or {}).get(TURN_ID_KEY)


def stop_tokens_of(params: SamplingParams) -> frozenset[int]:
    """Return the tokens that end the response of a request: its own, and the model's end token.

    vLLM leaves the latter out where the request says `ignore_eos`.
    """
    stops = set(params.stop_token_ids or ())
    if params.eos_token_id is not None:
        stops.add(params.eos_token_id)
    return frozenset(stops)


def open_tap(vllm_config: VllmConfig) -> Tap | None:
    """Open this worker's tap, as the environment has it; None without a controller.

    Raises ValueError with speculative decoding.
    """
    endpoint = os.environ.get(TAP_ENDPOINT_VARIABLE)
    if not endpoint:
        return None
    if vllm_config.speculative_config is not None:
        raise ValueError(
            "the signal tap measures a token before it is sampled, and may force it; with "
            "speculative decoding a step samples several that a draft has proposed: start the "
            "engine without --speculative-config, or set control.signal to stream"
        )
    return Tap(
        SignalSocket(endpoint, keys=os.environ.get(KEYS_VARIABLE, "")),
        int(os.environ.get(TAP_TOP_J_VARIABLE, "20")),
    )


class Tap:
    """The turns in the batch, and the connection to the controller."""

    def __init__(self, socket: SignalSocket, top_j: int) -> None:
        self.socket = socket
        self._top_j = top_j
        self._turns: dict[str, Turn] = {}
        self._ruled: dict[str, Turn] = {}  # those with a rule to carry out here
        # Turns that finished, or were preempted: then they come back.
        self._former: OrderedDict[str, Turn] = OrderedDict()

    def enter(self, turn: Turn, params: SamplingParams) -> Turn | None:
        """Take the request of `turn` into the batch.

        If it was there before, that turn is returned.
        """
        arguments = params.extra_args or {}
        before = self._former.pop(turn.turn_id, None)
        if before is not None:
            turn.forced = before.forced
            turn.rule = before.rule
            turn.queue = before.queue
        elif arguments.get(RULE_KEY):
            delegated = msgspec.json.decode(arguments[RULE_KEY], type=RuleSpec)
            turn.rule = delegated.build()
            turn.queue = delegated.closing_tokens
        self._turns[turn.turn_id] = turn
        if turn.rule is not None:
            self._ruled[turn.turn_id] = turn
        return before

    def leave(self, turn: Turn) -> None:
        """Take the request out of the batch, for good or for a while."""
        if self._turns.get(turn.turn_id) is turn:
            del self._turns[turn.turn_id]
            self._ruled.pop(turn.turn_id, None)
        self._former[turn.turn_id] = turn
        while len(self._former) > REMEMBERED:
            self._former.popitem(last=False)

    def take_commands(self, vocabulary: int) -> None:
        """Queue the tokens that commands ask for which have arrived."""
        for command in self.socket.receive_commands():
            turn = self._turns.get(command.turn_id) or self._former.get(command.turn_id)
            if turn is not None and takes_effect(command, turn.output, vocabulary):
                turn.forced.add(turn.position, command.tokens)

    def measure(self, logits: torch.Tensor, batch: Batch, *more: torch.Tensor) -> np.ndarray:
        """Measure the batch's rows of `logits` [B, V], before anything is forced.

        Returns float32 [3 + len(more), N]: entropy, confidence and top log-prob, and the values of
        `more` tensors [B] (of at most 24 bits), which come by the same transfer from the device.
        """
        if not batch.rows:
            return np.empty((3 + len(more), 0), FLOAT32)
        chosen = logits
        extra = list(more)
        if len(batch.rows) != logits.shape[0]:
            index = torch.tensor(batch.rows, device=logits.device)
            chosen = logits[index]
            extra = [tensor[index] for tensor in more]
        temperatures = [turn.temperature for turn in batch.turns]
        if any(temperature != 1.0 for temperature in temperatures):
            chosen = divide_by_temperature(chosen, torch.tensor(temperatures, device=logits.device))
        extra = [tensor.float() for tensor in extra]
        return torch.stack([*uncertainty(chosen, self._top_j), *extra]).cpu().numpy()

    def signals(self, batch: Batch, measured: np.ndarray) -> SignalRows:
        """Build the rows of the tokens that are about to be sampled, of what was measured."""
        turns = batch.turns
        entropy, confidence, top_log_prob = measured[:3]
        return SignalRows(
            [turn.turn_id for turn in turns],
            np.array([turn.position for turn in turns], INT32),
            entropy,
            confidence,
            top_log_prob,
            np.array([turn.forced.at(turn.position) for turn in turns], INT32),
            np.array([turn.previous for turn in turns], INT32),
        )

    def decide(self, rows: SignalRows) -> None:
        """Carry out the rules that were delegated to us; the rows say what is forced now."""
        if not self._ruled:
            return
        for i, (turn_id, signal) in enumerate(zip(rows.turn_ids, rows.signals(), strict=True)):
            turn = self._ruled.get(turn_id)
            if turn is not None and turn.rule is not None and turn.rule.observe(signal) is not None:
                turn.forced.add(turn.position, turn.queue)
                rows.forced[i] = turn.forced.at(signal.position)


def force(logits: torch.Tensor, batch: Batch) -> None:
    """Leave each row whose turn has a token to force one possible token, with log-prob 0."""
    pairs = zip(batch.rows, batch.turns, strict=True)
    tokens_by_row = [(row, turn.forced.at(turn.position)) for row, turn in pairs]
    forced = [(row, token) for row, token in tokens_by_row if token >= 0]
    if forced:
        index, tokens = (
            torch.tensor(column, device=logits.device) for column in zip(*forced, strict=True)
        )
        logits[index] = float("-inf")
        logits[index, tokens] = 0.0
