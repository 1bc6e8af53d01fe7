"""The signal tap: a logits processor inside vLLM's worker that measures each step's distributions, and can force tokens.

Interface: vLLM's V1 `LogitsProcessor` (vllm/v1/sample/logits_processor/interface.py), which calls `update_state` and then `apply`
once a step. What the adapter relies on, and where it comes from:

- Row i of the logits is request i of the persistent batch; `update_state` says which requests came, left and moved.
- `output` below is the runner's own list of a request's response tokens: its length is the position about to be sampled. With
  asynchronous scheduling it holds -1 for tokens in flight, which vLLM replaces before `apply` when custom processors exist.
- Custom processors run before temperature, so each row is divided by its own here.
- A chunk of a prefill that is not the last has a row, too, whose token is thrown away. Nothing in the interface tells; so with chunked
  prefill the first signal of a row is held back for a step, and sent once the response has grown. (`uncertainty` is computed anyway.)
- A preempted request leaves and comes back with a new list, so its forced tokens and its rule are kept by turn id.
"""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec
import torch
from vllm.v1.sample.logits_processor.interface import BatchUpdate, LogitsProcessor, MoveDirectionality

from controller.engine.names import RULE, TAP_ENDPOINT, TAP_TOP_J, TURN
from controller.engine.signal_socket import ForcedQueue, SignalRow, SignalSocket, takes_effect
from controller.engine.uncertainty import divide_by_temperature, uncertainty
from controller.rules.thinking import DelegatedRule, ThinkingRule

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.config import VllmConfig

log = logging.getLogger(__name__)

REMEMBERED = 4096
"""Turns that left the batch and are kept, with their forced tokens, in case they come back: more than can be preempted at once."""


@dataclass
class Turn:
    """One watched request of the batch."""

    turn_id: str
    temperature: float
    output: list[int]  # the runner's list, not a copy
    rule: ThinkingRule | None = None  # to be carried out here
    queue: list[int] = field(default_factory=list)  # what its intervention forces
    forced: ForcedQueue = field(default_factory=ForcedQueue)
    unproven: bool = False  # it has not sampled since it came: its next row may be of a prefill's chunk
    held: SignalRow | None = None

    @property
    def position(self) -> int:
        return len(self.output)

    def proven(self) -> SignalRow | None:
        """The row that was held back, if its token was sampled after all."""
        held, self.held = self.held, None
        if held is None or self.position <= held.position:
            return None
        self.unproven = False
        return held


class SignalTap(LogitsProcessor):
    """Sends one SignalFrame a step for the requests that carry our turn id, and forces what steers ask for."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        self._device = device
        self._turns: dict[int, Turn] = {}  # batch row -> turn
        self._delegated: dict[str, Turn] = {}  # those of them that have a rule of their own
        self._left: OrderedDict[str, Turn] = OrderedDict()  # finished, or preempted: then it comes back
        self._late: list[SignalRow] = []  # rows of turns that have left since the last frame
        self._chunks = bool(vllm_config.scheduler_config.enable_chunked_prefill)
        self._top_j = int(os.environ.get(TAP_TOP_J, "20"))
        self._socket: SignalSocket | None = None
        if endpoint := os.environ.get(TAP_ENDPOINT):
            if vllm_config.parallel_config.world_size > 1:
                # Every rank samples by itself: a steer that reached one of them would make their responses differ.
                raise ValueError("the signal tap works with one worker: start the engine without tensor or pipeline parallelism")
            self._socket = SignalSocket(endpoint)

    def is_argmax_invariant(self) -> bool:
        """Forcing changes the most likely token."""
        return False

    # --- who is in which row

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        if batch_update is None or self._socket is None:
            return
        for row in batch_update.removed:
            self._leave(row)
        for row, params, _prompt, output in batch_update.added:
            self._leave(row)  # a new request may take the row of one that is not reported as removed
            self._enter(row, params, output)
        for source, target, direction in batch_update.moved:
            moving, standing = self._turns.pop(source, None), self._turns.pop(target, None)
            if moving is not None:
                self._turns[target] = moving
            if standing is not None and direction == MoveDirectionality.SWAP:
                self._turns[source] = standing

    def _enter(self, row: int, params: SamplingParams, output: list[int]) -> None:
        turn_id = (params.extra_args or {}).get(TURN)
        if turn_id is None:
            return
        turn = Turn(turn_id, params.temperature, output, unproven=self._chunks)
        if (before := self._left.pop(turn_id, None)) is not None:
            turn.forced, turn.rule, turn.queue = before.forced, before.rule, before.queue
        elif rule := params.extra_args.get(RULE):
            delegated = msgspec.json.decode(rule, type=DelegatedRule)
            turn.rule, turn.queue = delegated.begin(), delegated.queue
        self._turns[row] = turn
        if turn.rule is not None:
            self._delegated[turn_id] = turn

    def _leave(self, row: int) -> None:
        turn = self._turns.pop(row, None)
        if turn is None:
            return
        if (late := turn.proven()) is not None:
            self._late.append(late)
        self._left[turn.turn_id] = turn
        self._delegated.pop(turn.turn_id, None)
        while len(self._left) > REMEMBERED:
            self._left.popitem(last=False)

    # --- one step

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        if self._socket is None:
            return logits
        self._take_steers(logits.shape[-1])
        if self._turns:
            released = self._decide(self._release(self._measure(logits)))
            self._socket.send(released)
            self._force(logits)
        elif self._late:
            self._socket.send(self._release({}))
        return logits

    def _take_steers(self, vocabulary: int) -> None:
        turns = None
        for steer in self._socket.steers():
            turns = turns if turns is not None else {turn.turn_id: turn for turn in self._turns.values()}
            turn = turns.get(steer.turn_id) or self._left.get(steer.turn_id)
            if turn is not None and takes_effect(steer, turn.output, vocabulary):
                turn.forced.add(turn.position, steer.tokens)

    def _measure(self, logits: torch.Tensor) -> dict[int, SignalRow]:
        """The signals of the watched rows of `logits` [B, V], before anything is forced."""
        rows = sorted(self._turns)
        chosen = logits if len(rows) == logits.shape[0] else logits[torch.tensor(rows, device=logits.device)]
        temperatures = [self._turns[row].temperature for row in rows]
        if any(temperature != 1.0 for temperature in temperatures):
            chosen = divide_by_temperature(chosen, torch.tensor(temperatures, device=logits.device))
        columns = torch.stack(uncertainty(chosen, self._top_j)).tolist()  # [3][R]: one transfer from the device
        measured = {}
        for row, *values in zip(rows, *columns, strict=True):
            turn = self._turns[row]
            position = turn.position
            previous = turn.output[-1] if position else -1
            measured[row] = SignalRow(turn.turn_id, position, *values, turn.forced.at(position), previous)
        return measured

    def _release(self, measured: dict[int, SignalRow]) -> list[SignalRow]:
        """The rows to send now: without those that may be of a prefill's chunk, with earlier ones that proved not to be."""
        out, self._late = self._late, []
        for row, signal in measured.items():
            turn = self._turns[row]
            if turn.unproven:
                if (earlier := turn.proven()) is not None:
                    out.append(earlier)
                else:
                    turn.held = signal
                    continue
            out.append(signal)
        return out

    def _decide(self, rows: list[SignalRow]) -> list[SignalRow]:
        """Carry out the rules that were delegated to us; the rows say what is forced now."""
        if not self._delegated:
            return rows
        return [self._apply_rule(row) for row in rows]

    def _apply_rule(self, row: SignalRow) -> SignalRow:
        turn = self._delegated.get(row.turn_id)
        if turn is None or turn.rule is None or turn.rule.observe(row.signal()) is None:
            return row
        turn.forced.add(turn.position, turn.queue)
        return row._replace(forced=turn.forced.at(row.position))

    def _force(self, logits: torch.Tensor) -> None:
        """Leave each forced row of `logits` one possible token, with log-prob 0."""
        forced = [(row, token) for row, turn in self._turns.items() if (token := turn.forced.at(turn.position)) >= 0]
        if forced:
            rows, tokens = (torch.tensor(column, device=logits.device) for column in zip(*forced, strict=True))
            logits[rows] = float("-inf")
            logits[rows, tokens] = 0.0
