"""The signal tap for vLLM's V1 model runner.

It is a logits processor that sends one frame of signals a step, and can force tokens.

Interface: `LogitsProcessor` (vllm/v1/sample/logits_processor/interface.py), which calls
`update_state` and then `apply` once a step. What the adapter relies on, and where it comes from:

- Row i of the logits is request i of the persistent batch; `update_state` says which requests
  came, left and moved.
- `output` below is the runner's own list of a request's response tokens: its length is the position
  about to be sampled. With asynchronous scheduling it holds -1 for tokens in flight, which vLLM
  replaces before `apply` when custom processors exist.
- Custom processors run before temperature, so each row is divided by its own here.
- A chunk of a prefill that is not the last has a row, too, whose token is thrown away. Nothing in
  the interface tells. So with chunked prefill the first signal of a row is held back for a step,
  and sent once the response has grown. (`uncertainty` is computed anyway.)
- With asynchronous scheduling a request has one more row after its end token, which is left out.
- A preempted request leaves and comes back with a new list, so its forced tokens and its rule are
  kept by turn id.
- Each of several workers samples every request by itself, so that a token that one of them is told
  to force would make their responses differ: there is one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vllm.v1.sample.logits_processor.interface import (
    BatchUpdate,
    LogitsProcessor,
    MoveDirectionality,
)

from engine.plugin.signal_socket import SignalRows, concat_rows
from engine.plugin.tap import (
    Batch,
    Tap,
    Turn,
    build_batch,
    force,
    open_tap,
    stop_tokens_of,
    turn_id_of,
)

if TYPE_CHECKING:
    import torch
    from vllm import SamplingParams
    from vllm.config import VllmConfig


@dataclass
class BatchTurn(Turn):
    """A turn whose `output` is the runner's list, not a copy."""

    unproven: bool = False
    """It has not sampled since it came: its next row may be of a prefill's chunk."""
    withheld_row: SignalRows | None = None

    def take_proven_row(self) -> SignalRows | None:
        """Take the row that was withheld, if its token was sampled after all."""
        row = self.withheld_row
        self.withheld_row = None
        if row is None or self.position <= row.position[0]:
            return None
        self.unproven = False
        return row


class SignalTap(LogitsProcessor):
    """Sends one SignalFrame a step for the requests that carry our turn id, and forces tokens.

    Commands and rules ask for these.
    """

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        self._turns: dict[int, BatchTurn] = {}  # batch row -> turn
        self._batch = build_batch(self._turns)
        self._late: list[SignalRows] = []  # rows of turns that have left since the last frame
        self._chunks = bool(vllm_config.scheduler_config.enable_chunked_prefill)
        self.tap = open_tap(vllm_config)
        if self.tap is not None and vllm_config.parallel_config.world_size > 1:
            raise ValueError(
                "the signal tap of the V1 model runner works with one worker: start the engine "
                "without tensor or pipeline parallelism, or with VLLM_USE_V2_MODEL_RUNNER=1"
            )

    def is_argmax_invariant(self) -> bool:
        """Forcing changes the most likely token."""
        return False

    # --- who is in which row

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        tap = self.tap
        if batch_update is None or tap is None:
            return
        for row in batch_update.removed:
            self._leave(tap, row)
        for row, params, _prompt, output in batch_update.added:
            # A new request may take the row of one that is not reported as removed.
            self._leave(tap, row)
            self._enter(tap, row, params, output)
        for source, target, direction in batch_update.moved:
            self._move(tap, source, target, direction)
        self._batch = build_batch(self._turns)

    def _move(self, tap: Tap, source: int, target: int, direction: MoveDirectionality) -> None:
        """Have the turn in row `source` in row `target`, and with SWAP the other one there.

        Else what was in `target` has left: a row that is filled again is not reported as removed.
        """
        moving = self._turns.pop(source, None)
        if direction == MoveDirectionality.SWAP:
            target_turn = self._turns.pop(target, None)
            if target_turn is not None:
                self._turns[source] = target_turn
        else:
            self._leave(tap, target)
        if moving is not None:
            self._turns[target] = moving

    def _enter(self, tap: Tap, row: int, params: SamplingParams, output: list[int]) -> None:
        turn_id = turn_id_of(params)
        if turn_id is not None:
            turn = BatchTurn(
                turn_id, params.temperature, output, stop_tokens_of(params), unproven=self._chunks
            )
            self._turns[row] = turn
            tap.enter(turn, params)

    def _leave(self, tap: Tap, row: int) -> None:
        turn = self._turns.pop(row, None)
        if turn is None:
            return
        late_row = turn.take_proven_row()
        if late_row is not None:
            self._late.append(late_row)
        tap.leave(turn)

    # --- one step

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        if self.tap is None:
            return logits
        self.tap.take_commands(logits.shape[-1])
        batch = self._batch.pick(self._batch.running())
        if batch.turns or self._late:
            measured = self.tap.measure(logits, batch)
            signals = self.tap.signals(batch, measured)
            signals = self._release(batch, signals)
            self.tap.decide(signals)
            self.tap.socket.send(signals)
            force(logits, batch)
        return logits

    def _release(self, batch: Batch[BatchTurn], signals: SignalRows) -> SignalRows:
        """Return the rows to send now.

        Those that may be of a prefill's chunk are left out, and earlier ones that proved not to be
        are added.
        """
        if not self._late and not any(turn.unproven for turn in batch.turns):
            return signals
        earlier = self._late
        self._late = []
        sent = []
        for i, turn in enumerate(batch.turns):
            if turn.unproven:
                row = turn.take_proven_row()
                if row is None:
                    turn.withheld_row = signals.pick([i])
                    continue
                earlier.append(row)
            sent.append(i)
        return concat_rows([*earlier, signals.pick(sent)])
