"""The signal tap for vLLM's V2 model runner, the default on GPUs.

Interface: `LogitsProcessor` (vllm/v1/worker/gpu/sample/logits_processor/interface.py), which calls
`add_request` when a request gets a slot, and `apply(logits, ctx)` once a step. What the adapter
relies on:

- Row i of the logits is the request in slot `ctx.idx_mapping_np[i]`. With speculative decoding a
  request would have several rows, so that is refused.
- `ctx.seq_lens_upper_bound_np[i]` less the length of the prompt is the position about to be
  sampled. Of a chunk of a prefill that is not the last it is negative. Of one that is computed
  again after a preemption it is a position that was sampled before. (Or it is the last one once
  more, since the tap learns of a token a step later. Whoever reads the signals ignores a position
  that he has seen.)
- `ctx.input_ids[i]` is the token before it. If that ends the response, the row is thrown away: with
  asynchronous scheduling the step had begun before vLLM knew of it.
- Nothing tells when a request has left; its slot is taken by another one some time.
- With batch-sharded sampling (vllm/v1/worker/gpu/sample/batch_shard.py) each worker has the rows of
  its own slots alone, whole. `add_request` is called in all workers. Each has a connection of its
  own, by which the controller's commands come back to where the turn is sampled. A preempted turn
  may come back to another worker, whose copy of its rule has not seen it begin, and cuts nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm.v1.worker.gpu.sample.logits_processor.interface import (
    LogitsContext,
    LogitsProcessor,
    LogitsProcRequestState,
)

from engine.plugin.sharded_sampling import check_shards
from engine.plugin.tap import (
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

UNKNOWN = -1
"""A response token that was sampled but not seen: the last one before a preemption."""


class SignalTapV2(LogitsProcessor):
    """Does as `SignalTap`, for the V2 model runner."""

    def __init__(self, vllm_config: VllmConfig, req_states: LogitsProcRequestState) -> None:
        self._states = req_states
        self._slots: dict[int, Turn] = {}
        self.tap = open_tap(vllm_config)
        if self.tap is not None:
            check_shards(vllm_config)

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        former = self._slots.pop(req_idx, None)
        if former is not None and self.tap is not None:
            self.tap.leave(former)
        turn_id = turn_id_of(sampling_params)
        if self.tap is None or turn_id is None:
            return False
        for slot, turn in list(self._slots.items()):
            if turn.turn_id == turn_id:  # it was preempted, and comes back in another slot
                self.tap.leave(self._slots.pop(slot))
        turn = Turn(turn_id, sampling_params.temperature, [], stop_tokens_of(sampling_params))
        before = self.tap.enter(turn, sampling_params)
        if before is not None:
            turn.output = before.output
        self._slots[req_idx] = turn
        return True

    def apply(self, logits: torch.Tensor, ctx: LogitsContext) -> torch.Tensor:
        if self.tap is None:
            return logits
        self._grow(ctx)
        rows = self._rows(ctx)
        if rows:
            self._watch(self.tap, rows, logits, ctx)
        else:
            self.tap.take_commands(logits.shape[-1])
        return logits

    def _watch(
        self, tap: Tap, rows: dict[int, Turn], logits: torch.Tensor, ctx: LogitsContext
    ) -> None:
        """Measure, decide, send and force, for the turns by row."""
        batch = build_batch(rows)
        measured = tap.measure(logits, batch, ctx.input_ids)
        for turn, token in zip(batch.turns, measured[3].tolist(), strict=True):
            if turn.output:
                turn.output[-1] = int(token)
        # Now it is known whether a response holds the token that a command is not to follow.
        tap.take_commands(logits.shape[-1])
        running = batch.running()
        batch = batch.pick(running)
        signals = tap.signals(batch, measured[:, running])
        tap.decide(signals)
        tap.socket.send(signals)
        force(logits, batch)

    def _grow(self, ctx: LogitsContext) -> None:
        """Have each response as many tokens as its position says.

        The last one becomes known with this step's transfer.
        """
        for row, slot in enumerate(ctx.idx_mapping_np.tolist()):
            turn = self._slots.get(slot)
            if turn is not None:
                turn.output += [UNKNOWN] * (self._position(ctx, row, slot) - len(turn.output))

    def _rows(self, ctx: LogitsContext) -> dict[int, Turn]:
        """Return the rows in which a turn is about to sample a token for the first time."""
        slots = enumerate(ctx.idx_mapping_np.tolist())
        turns = [
            (row, self._slots[slot], self._position(ctx, row, slot))
            for row, slot in slots
            if slot in self._slots
        ]
        return {row: turn for row, turn, position in turns if position == turn.position}

    def _position(self, ctx: LogitsContext, row: int, slot: int) -> int:
        return int(ctx.seq_lens_upper_bound_np[row]) - int(self._states.prompt_len.np[slot])
