"""One episode, from its lease to its trajectory: prompt, response, action, step, until the environment is done."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from hashlib import blake2b
from math import isfinite

import msgspec

from envs.base import Environment, StepResult
from envs.play import start_episode
from protocol.arrays import INT32, pack, unpack
from protocol.checks import MAX_REWARD, MAX_TURNS
from protocol.codec import MAX_FRAME, encode
from protocol.messages import DropReason, Lease, Trajectory, Turn, TurnFailed, TurnRequest, TurnResult
from protocol.prompting import Prompter

log = logging.getLogger(__name__)

TakeTurn = Callable[[TurnRequest], Awaitable[TurnResult | TurnFailed]]


def digest(text: str) -> str:
    """16 letters in place of a text that is only compared."""
    return blake2b(text.encode(), digest_size=8).hexdigest()


def frame_of(trajectory: Trajectory) -> bytes:
    """The episode as it is sent. One that the learner would refuse for its size, however often it is sent, is dropped, and says so."""
    frame = encode(trajectory)
    if len(frame) <= MAX_FRAME and len(trajectory.turns) <= MAX_TURNS:
        return frame
    detail = (
        f"an episode of {len(trajectory.turns)} turns in {len(frame) >> 20} MB is more than can be sent ({MAX_TURNS} turns, "
        f"{MAX_FRAME >> 20} MB): lower env.max_turns, or sampling.max_tokens"
    )
    return encode(without_turns(trajectory, DropReason.ENV_ERROR, detail))


def without_turns(trajectory: Trajectory, reason: DropReason, detail: str) -> Trajectory:
    """The notice that an episode was dropped, in its place."""
    return msgspec.structs.replace(trajectory, turns=[], success=False, scores={}, dropped=reason, detail=detail)


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
    ) -> None:
        self._environment = environment
        self._prompter = prompter
        self._take_turn = take_turn
        self._step_timeout = step_timeout
        self._max_prompt_tokens = max_prompt_tokens
        self._anchor_texts = anchor_texts

    async def play(self, lease: Lease) -> Trajectory | None:
        """The trajectory; dropped, with a reason, when the environment or the engine failed. None if it was cancelled."""
        played = _Played(lease)
        try:
            await self._play(lease, played)
        except _Ended as ended:
            if ended.reason is DropReason.CANCELLED:
                return None
            return played.trajectory(dropped=ended.reason, detail=str(ended))
        return played.trajectory()

    async def _play(self, lease: Lease, played: _Played) -> None:
        env = self._environment
        episode = await self._guarded(start_episode, env, lease.split, lease.task_index, lease.seed)
        with _environment_errors():
            played.task, played.task_type = _text("task", episode.task), _text("task_type", episode.task_type)
            view = env.view(episode)
        while True:
            with _environment_errors():
                prompt = self._prompter.prompt(env.prompt(view))
            if len(prompt) > self._max_prompt_tokens:
                raise _Ended(DropReason.ENV_ERROR, f"a prompt of {len(prompt)} tokens: raise engine.max_model_len, or lower env.history")
            request = TurnRequest(
                key=lease.key, attempt=lease.attempt, turn=len(played.turns), prompt=pack(prompt, INT32), permit=lease.permit
            )
            answer = await self._take_turn(request)
            if isinstance(answer, TurnFailed):
                raise _Ended(answer.reason, answer.detail)
            response = self._prompter.text(unpack(answer.kept.tokens, INT32).tolist())
            with _environment_errors():
                seen = _text("anchor()", episode.anchor())
                parsed = env.parse(response, view.observation.admissible)
                action, valid = _text("action", parsed.action), bool(parsed.valid)
            result = await self._guarded(episode.step, action)
            with _environment_errors():
                reward, scores = _numbers(result, episode.scores)
                played.turns.append(
                    Turn(
                        prompt=request.prompt, kept=answer.kept, rejected=answer.rejected, reward=reward, valid=valid,
                        anchor=seen if self._anchor_texts else digest(seen), action=action,
                    )
                )  # fmt: skip
                if result.done:
                    played.success, played.scores = bool(result.success), scores
                    return
                view.record(action, result.observation)

    async def _guarded(self, function: Callable, *args: object):
        """Run a blocking call of the environment off the event loop."""
        result = _in_thread(function, *args)
        await asyncio.wait({result}, timeout=self._step_timeout)
        if not result.done():
            result.cancel()
            raise _Ended(DropReason.ENV_ERROR, f"the environment took more than {self._step_timeout:g} s (actor.step_timeout)")
        with _environment_errors():
            return result.result()


@contextmanager
def _environment_errors() -> Iterator[None]:
    """Whatever goes wrong inside ends the episode, and not the actor: the next one would be given the same lease."""
    try:
        yield
    except Exception as error:
        log.warning("the environment failed", exc_info=True)
        raise _Ended(DropReason.ENV_ERROR, f"{type(error).__name__}: {error}") from error


def _text(name: str, value: object) -> str:
    """What the environment gave as `name`. TypeError if it is no text: the learner would refuse the episode, however often it is sent."""
    if not isinstance(value, str):
        raise TypeError(f"the environment gave {value!r} as {name}, which is a text")
    return value


def _numbers(result: StepResult, scores: Mapping[str, float]) -> tuple[float, dict[str, float]]:
    """Reward and scores as floats, whatever numbers they are (NumPy's, say). ValueError for those that cannot be computed with."""
    try:
        reward, found = float(result.reward), {str(name): float(score) for name, score in scores.items()}
        sound = abs(reward) <= MAX_REWARD and all(map(isfinite, found.values()))
    except (TypeError, ValueError):
        sound = False
    if not sound:
        raise ValueError(f"the environment gave a reward of {result.reward}, and scores {dict(scores)}")
    return reward, found


def _in_thread(function: Callable, *args: object) -> asyncio.Future:
    """What a call comes to, in a thread of its own: one that never ends holds up neither others, as it would in a pool, nor the end of
    the process."""
    result = Future()
    result.set_running_or_notify_cancel()  # nobody can cancel it any more

    def call() -> None:
        try:
            result.set_result(function(*args))
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=call, daemon=True, name="environment").start()
    return asyncio.wrap_future(result)


class _Played:
    """What has been played of a lease so far."""

    def __init__(self, lease: Lease) -> None:
        self._lease = lease
        self.task = self.task_type = ""
        self.turns: list[Turn] = []
        self.success = False
        self.scores: dict[str, float] = {}

    def trajectory(self, dropped: DropReason | None = None, detail: str = "") -> Trajectory:
        return Trajectory(
            key=self._lease.key, attempt=self._lease.attempt, task_index=self._lease.task_index, task_type=self.task_type,
            task=self.task, success=self.success, turns=self.turns, scores=self.scores, dropped=dropped, detail=detail,
        )  # fmt: skip
