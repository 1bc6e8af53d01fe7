"""One episode, from its lease to its trajectory: prompt, response, action, step, until the
environment is done."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from hashlib import blake2b

import msgspec

from actors.crash import RunningLeases
from actors.stage import Stage
from actors.user_code import EpisodeThread
from envs.base import Environment
from envs.user_errors import UserCodeError, source_directory
from protocol.arrays import INT32, pack
from protocol.codec import MAX_FRAME, encode
from protocol.messages import (
    DropReason,
    Lease,
    Trajectory,
    Turn,
    TurnFailed,
    TurnRequest,
    TurnResult,
)
from protocol.prompting import Prompter
from protocol.validation import MAX_TURNS

log = logging.getLogger(__name__)

TakeTurn = Callable[[TurnRequest], Awaitable[TurnResult | TurnFailed]]


def digest(text: str) -> str:
    """16 letters in place of a text that is only compared."""
    return blake2b(text.encode(), digest_size=8).hexdigest()


def frame_of(trajectory: Trajectory) -> bytes:
    """The episode as it is sent.

    One that the learner would refuse for its size, however often it is sent, is dropped, and says
    so.
    """
    frame = encode(trajectory)
    if len(frame) <= MAX_FRAME and len(trajectory.turns) <= MAX_TURNS:
        return frame
    detail = (
        f"an episode of {len(trajectory.turns)} turns in {len(frame) >> 20} MB is more than can "
        f"be sent ({MAX_TURNS} turns, "
        f"{MAX_FRAME >> 20} MB): lower env.max_turns, or sampling.max_tokens"
    )
    return encode(without_turns(trajectory, DropReason.ENV_ERROR, detail))


def without_turns(trajectory: Trajectory, reason: DropReason, detail: str) -> Trajectory:
    """The notice that an episode was dropped, in its place."""
    return msgspec.structs.replace(
        trajectory, turns=[], success=False, scores={}, drop_reason=reason, detail=detail
    )


class _Ended(Exception):
    """The episode cannot go on."""

    def __init__(self, reason: DropReason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class EpisodePlayer:
    """Plays leases in one environment. `take_turn` asks the controller for a response."""

    def __init__(
        self,
        environment: Environment,
        prompter: Prompter,
        take_turn: TakeTurn,
        *,
        step_timeout: float,
        max_prompt_tokens: int,
        anchor_texts: bool,
        running: RunningLeases | None = None,
    ) -> None:
        """`running` is told of episodes while code of their environment runs."""
        self._environment = environment
        self._prompter = prompter
        self._take_turn = take_turn
        self._step_timeout = step_timeout
        self._max_prompt_tokens = max_prompt_tokens
        self._anchor_texts = anchor_texts
        self._running = running or RunningLeases()
        self._home = source_directory(environment)
        self._closing: set[asyncio.Future] = set()

    async def play(self, lease: Lease) -> Trajectory | None:
        """The trajectory; dropped, with a reason, when the environment or the engine failed.

        None if it was cancelled.
        """
        played = _Played(lease)
        stage = Stage(self._environment, self._prompter, self._max_prompt_tokens)
        thread = EpisodeThread(self._home, self._step_timeout)
        try:
            await self._play(lease, played, stage, thread)
        except UserCodeError as error:
            log.warning("episode %s: %s\n%s", lease.key.id, error, error.trace)
            return played.trajectory(drop_reason=DropReason.ENV_ERROR, detail=str(error))
        except _Ended as ended:
            if ended.reason is DropReason.CANCELLED:
                return None
            return played.trajectory(drop_reason=ended.reason, detail=str(ended))
        except asyncio.CancelledError:
            thread.abandoned = True
            raise
        finally:
            await self._close(lease, stage, thread)
        return played.trajectory()

    async def let_go(self, seconds: float) -> None:
        """Wait until what episodes that were broken off hold open is closed, for so long at
        most."""
        if self._closing:
            await asyncio.wait(self._closing, timeout=seconds)

    async def _play(
        self, lease: Lease, played: _Played, stage: Stage, thread: EpisodeThread
    ) -> None:
        with self._running.of(lease):
            opening = await thread.call(stage.begin, lease.split, lease.task_index, lease.seed)
        played.task = opening.task
        played.task_type = opening.task_type
        prompt = opening.prompt
        if prompt is None:
            text = (
                f"the first prompt has more than {self._max_prompt_tokens} tokens: raise "
                "engine.max_model_len, or lower env.history"
            )
            raise _Ended(DropReason.ENV_ERROR, text)
        while True:
            request = TurnRequest(
                key=lease.key,
                lease_attempt=lease.lease_attempt,
                turn_index=len(played.turns),
                prompt=pack(prompt, INT32),
                permit=lease.permit,
            )
            answer = await self._take_turn(request)
            if isinstance(answer, TurnFailed):
                raise _Ended(answer.reason, answer.detail)
            with self._running.of(lease):
                moved = await thread.call(stage.move, answer.kept.tokens)
            played.turns.append(
                Turn(
                    prompt=request.prompt,
                    kept=answer.kept,
                    rejected=answer.rejected,
                    reward=moved.reward,
                    valid=moved.valid,
                    anchor=moved.anchor if self._anchor_texts else digest(moved.anchor),
                    action=moved.action,
                )
            )
            prompt = moved.prompt
            if moved.done or prompt is None:
                played.success = moved.success
                played.scores = moved.scores
                played.overflowed = not moved.done
                played.truncated = moved.truncated
                return
            if len(played.turns) == MAX_TURNS:
                raise _Ended(
                    DropReason.ENV_ERROR,
                    f"the episode has no end after {MAX_TURNS:,} turns: lower env.max_turns",
                )

    async def _close(self, lease: Lease, stage: Stage, thread: EpisodeThread) -> None:
        """Have what the episode holds open closed: now, or as soon as the call that hangs
        returns."""
        ended = thread.end(stage.close)
        self._closing.add(ended)
        ended.add_done_callback(self._closing.discard)
        if thread.abandoned:
            return
        with self._running.of(lease):
            await asyncio.wait({ended}, timeout=self._step_timeout)
        if not ended.done():
            log.warning(
                "episode %s: close() takes more than %g s (actor.step_timeout): left to itself",
                lease.key.id,
                self._step_timeout,
            )
        elif ended.result()[0]:
            log.warning("episode %s: close() failed: %s", lease.key.id, ended.result()[1])


class _Played:
    """What has been played of a lease so far."""

    def __init__(self, lease: Lease) -> None:
        self._lease = lease
        self.task = self.task_type = ""
        self.turns: list[Turn] = []
        self.success = False
        self.overflowed = False
        self.truncated = False
        self.scores: dict[str, float] = {}

    def trajectory(self, drop_reason: DropReason | None = None, detail: str = "") -> Trajectory:
        return Trajectory(
            key=self._lease.key,
            lease_attempt=self._lease.lease_attempt,
            task_index=self._lease.task_index,
            task_type=self.task_type,
            task=self.task,
            success=self.success,
            turns=self.turns,
            scores=self.scores,
            drop_reason=drop_reason,
            detail=detail,
            overflowed=self.overflowed,
            truncated=self.truncated,
        )
