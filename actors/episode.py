"""One episode, from its lease to its trajectory.

It is a sequence of prompt, response, action and step, until the environment is done.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import msgspec

from actors.conversation_stage import ConversationStage
from actors.crash import RunningLeases
from actors.endpoint import Endpoint
from actors.harness_stage import HarnessStage
from actors.stage import Stage, StepOutcome
from actors.user_code import EpisodeThread
from envs.base import Environment
from envs.conversation import is_conversation, tools_of
from envs.harness import is_harness
from envs.registry import Environments
from envs.user_errors import UserCodeError, source_directory
from protocol.arrays import INT32, pack
from protocol.chat_codec import ChatCodec
from protocol.codec import MAX_FRAME, encode
from protocol.conversation import build_codec
from protocol.messages import (
    DropReason,
    Lease,
    Response,
    Trajectory,
    Turn,
    TurnFailed,
    TurnRequest,
    TurnResult,
)
from protocol.prompting import Prompter
from protocol.transcripts import CodecOf
from protocol.validation import MAX_TURNS

log = logging.getLogger(__name__)

AnyStage = Stage | ConversationStage | HarnessStage

TOKENIZING_SECONDS = 10.0
"""Seconds that the prompts of a harness's requests take to be made, at most."""

MAX_CODECS = 64
"""Codecs of harnesses' tools that are kept: to find out how a template has them takes a while."""

TakeTurn = Callable[[TurnRequest], Awaitable[TurnResult | TurnFailed]]


def digest(text: str) -> str:
    """Return 16 letters in place of a text that is only compared."""
    return blake2b(text.encode(), digest_size=8).hexdigest()


def cache_codecs(prompter: Prompter) -> CodecOf:
    """Return what makes the codec of a conversation with some tools, the same one for the same."""

    @lru_cache(MAX_CODECS)
    def build(tools_json: str) -> ChatCodec:
        return build_codec(prompter, json.loads(tools_json))

    def codec_of(tools: Sequence[Mapping[str, Any]]) -> ChatCodec:
        return build(json.dumps(list(tools)))

    return codec_of


def encode_trajectory(trajectory: Trajectory) -> bytes:
    """Encode an episode as the frame in which it is sent.

    The learner would refuse one that is too large, however often it is sent. In its place goes the
    notice that it was dropped.
    """
    frame = encode(trajectory)
    if len(frame) <= MAX_FRAME and len(trajectory.turns) <= MAX_TURNS:
        return frame
    detail = (
        f"an episode of {len(trajectory.turns)} turns in {len(frame) >> 20} MB is more than can "
        f"be sent ({MAX_TURNS} turns, "
        f"{MAX_FRAME >> 20} MB): lower env.max_turns, or sampling.max_tokens"
    )
    return encode(drop_turns(trajectory, DropReason.ENV_ERROR, detail))


def drop_turns(trajectory: Trajectory, reason: DropReason, detail: str) -> Trajectory:
    """Make the notice that an episode was dropped, which takes its place."""
    return msgspec.structs.replace(
        trajectory, turns=[], success=False, scores={}, drop_reason=reason, detail=detail
    )


def _extra_seconds(stage: AnyStage) -> float:
    """Return the seconds that a call may take beyond a step of the environment.

    A harness's stage measures that by itself, and makes tokens besides.
    """
    if isinstance(stage, HarnessStage):
        return TOKENIZING_SECONDS
    return 0.0


def _step(stage: AnyStage, kept: Response) -> StepOutcome:
    """Hand a response to its stage; a harness's cuts it as the request asks."""
    if isinstance(stage, HarnessStage):
        return stage.step(kept)
    return stage.step(kept.tokens)


class _Ended(Exception):
    """The episode cannot go on, for a reason that is not its environment's code."""

    def __init__(self, reason: DropReason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class EpisodePlayer:
    """Plays leases in their environments; `take_turn` asks the controller for a response."""

    def __init__(
        self,
        environments: Environments,
        prompter: Prompter,
        take_turn: TakeTurn,
        *,
        step_timeout: float,
        max_prompt_tokens: int,
        anchor_texts: bool,
        running: RunningLeases | None = None,
    ) -> None:
        """`running` has the leases of episodes while code of their environment runs."""
        self._environments = environments
        self._prompter = prompter
        self._take_turn = take_turn
        self._step_timeout = step_timeout
        self._max_prompt_tokens = max_prompt_tokens
        self._anchor_texts = anchor_texts
        self._running = running or RunningLeases()
        self._home = source_directory(environments.training)
        self._closing: set[asyncio.Future] = set()
        self._codecs: dict[int, ChatCodec] = {}  # by the id of an environment that talks
        self._codec_of = cache_codecs(prompter)
        self._endpoint: Endpoint | None = None  # begun by the first harness

    async def play(self, lease: Lease) -> Trajectory | None:
        """Play an episode, and return its trajectory; None if it was canceled.

        It is dropped, with a reason, when the environment or the engine failed.
        """
        played = _Played(lease)
        environment = self._environments.of_set(lease.evaluation_set)
        stage = self._make_stage(environment)
        thread = EpisodeThread(self._home, self._step_timeout + _extra_seconds(stage))
        try:
            await self._play(lease, played, stage, thread)
        except UserCodeError as error:
            log.warning("episode %s: %s\n%s", lease.key.id, error, error.trace)
            return played.build_trajectory(drop_reason=DropReason.ENV_ERROR, detail=str(error))
        except _Ended as ended:
            if ended.reason is DropReason.CANCELED:
                return None
            return played.build_trajectory(drop_reason=ended.reason, detail=str(ended))
        except asyncio.CancelledError:
            thread.abandoned = True
            raise
        finally:
            await self._close(lease, stage, thread)
        return played.build_trajectory()

    def _make_stage(self, environment: Environment) -> AnyStage:
        if is_conversation(environment):
            codec = self._codecs.get(id(environment))
            if codec is None:
                codec = build_codec(self._prompter, tools_of(environment))
                self._codecs[id(environment)] = codec
            return ConversationStage(environment, codec, self._max_prompt_tokens)
        if is_harness(environment):
            return self._make_harness_stage(environment)
        return Stage(environment, self._prompter, self._max_prompt_tokens)

    def _make_harness_stage(self, harness: object) -> HarnessStage:
        if self._endpoint is None:
            self._endpoint = Endpoint()
            self._endpoint.start()
        return HarnessStage(
            harness,
            self._prompter,
            self._codec_of,
            self._endpoint,
            max_prompt_tokens=self._max_prompt_tokens,
            timeout_seconds=self._step_timeout,
            home=self._home,
        )

    async def wait_closed(self, seconds: float) -> None:
        """Wait until episodes that were broken off have closed what they hold open.

        The wait ends after so many seconds. The endpoint of harnesses ends with it.
        """
        if self._closing:
            await asyncio.wait(self._closing, timeout=seconds)
        if self._endpoint is not None:
            self._endpoint.close()
            self._endpoint = None

    async def _play(
        self, lease: Lease, played: _Played, stage: AnyStage, thread: EpisodeThread
    ) -> None:
        with self._running.track(lease):
            opening = await thread.call(stage.start, lease.split, lease.task_index, lease.seed)
        played.task = opening.task
        played.task_type = opening.task_type
        prompt = opening.prompt
        if prompt is None:
            detail = (
                f"the first prompt has more than {self._max_prompt_tokens} tokens: raise "
                "engine.max_model_len, or shorten what the environment begins with"
            )
            raise _Ended(DropReason.ENV_ERROR, detail)
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
            with self._running.track(lease):
                outcome = await thread.call(_step, stage, answer.kept)
            played.turns.append(self._build_turn(request, answer, outcome))
            prompt = outcome.prompt
            played.rewrites += outcome.rewritten
            if outcome.done or prompt is None:
                played.success = outcome.success
                played.scores = outcome.scores
                played.overflowed = not outcome.done
                played.truncated = outcome.truncated
                return
            if len(played.turns) == MAX_TURNS:
                raise _Ended(
                    DropReason.ENV_ERROR,
                    f"the episode has no end after {MAX_TURNS:,} turns: lower env.max_turns",
                )

    def _build_turn(self, request: TurnRequest, answer: TurnResult, outcome: StepOutcome) -> Turn:
        anchor = outcome.anchor
        if not self._anchor_texts:
            anchor = digest(anchor)
        return Turn(
            prompt=request.prompt,
            kept=outcome.kept or answer.kept,
            rejected=answer.rejected,
            reward=outcome.reward,
            valid=outcome.valid,
            anchor=anchor,
            action=outcome.action,
        )

    async def _close(self, lease: Lease, stage: AnyStage, thread: EpisodeThread) -> None:
        """Have what the episode holds open closed.

        That is now, or as soon as the call that hangs returns.
        """
        if thread.abandoned and isinstance(stage, HarnessStage):
            stage.interrupt()
        ended = thread.end(stage.close)
        self._closing.add(ended)
        ended.add_done_callback(self._closing.discard)
        if thread.abandoned:
            return
        with self._running.track(lease):
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
    """The part of a lease's episode that has been played so far."""

    def __init__(self, lease: Lease) -> None:
        self._lease = lease
        self.task = ""
        self.task_type = ""
        self.turns: list[Turn] = []
        self.success = False
        self.overflowed = False
        self.truncated = False
        self.rewrites = 0
        self.scores: dict[str, float] = {}

    def build_trajectory(
        self, drop_reason: DropReason | None = None, detail: str = ""
    ) -> Trajectory:
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
            rewrites=self.rewrites,
        )
