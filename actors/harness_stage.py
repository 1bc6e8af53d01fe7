"""The requests of a harness as the turns of an episode; see `Stage`."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from actors.endpoint import Ask, Endpoint, HarnessEnd
from actors.harness_requests import PromptedChat, PromptedText, RequestReader, count_characters
from actors.harness_run import HarnessRun, describe_wait
from actors.stage import (
    LONGEST_TOKEN,
    EpisodeOpening,
    StepOutcome,
    require_flag,
    require_reward,
    require_scores,
)
from envs.base import Split
from envs.harness import Outcome
from envs.user_errors import UserCodeError, describe_value, require_text
from protocol.arrays import FLOAT32, INT32, unpack
from protocol.cutting import Cut, cut_response, find_cut
from protocol.messages import Response
from protocol.openai_answers import (
    NO_LOG_PROB,
    Answered,
    Choice,
    SampledToken,
    find_finish_reason,
)
from protocol.openai_requests import RequestError, Wanted
from protocol.transcripts import CodecOf, TextPrompter

NO_REWARD = (
    "the harness gave no reward: episode() returns a number, a command writes it into the file "
    'FORAY_REWARD_FILE, and both may post {"reward": NUMBER} to /reward'
)

OVERFLOWED = "context_length_exceeded"
NO_TURNS_LEFT = "max_turns_exceeded"
"""Codes of refusals after which a harness that fails was cut off, and is not broken."""


@dataclass(slots=True)
class _AskedTurn:
    """A request whose choices are being sampled, one turn each."""

    ask: Ask
    prompted: PromptedChat | PromptedText
    choices: list[Choice] = field(default_factory=list)

    @property
    def wanted(self) -> Wanted:
        return self.ask.request.wanted

    @property
    def needs_more(self) -> bool:
        """Whether somebody waits for choices that are still to be sampled."""
        return len(self.choices) < self.wanted.choices and not self.ask.answer.done()


class HarnessStage:
    """One episode of a harness, whose requests are its turns, one after another."""

    def __init__(
        self,
        harness: Any,
        prompter: TextPrompter,
        codec_of: CodecOf,
        endpoint: Endpoint,
        *,
        max_prompt_tokens: int,
        timeout_seconds: float,
        home: str,
    ) -> None:
        """`timeout_seconds`: how long a harness may neither ask for a turn nor end."""
        self._harness = harness
        self._prompter = prompter
        self._reader = RequestReader(prompter, codec_of)
        self._endpoint = endpoint
        self._session = endpoint.open_session()
        self._max_prompt_tokens = max_prompt_tokens
        self._timeout_seconds = timeout_seconds
        self._home = home
        self._run: HarnessRun | None = None
        self._end: HarnessEnd | None = None
        self._asked: _AskedTurn | None = None
        self._turns = 0
        self._refusal = ""  # code of the last request's, until a later one is taken

    def start(self, split: Split, index: int, seed: int) -> EpisodeOpening:
        """Start the harness, up to its first request."""
        del seed  # a harness draws by itself
        task = self._harness.task(split, index)
        name = task if isinstance(task, str) else describe_value(task)
        words = require_text("task()", name)
        self._run = HarnessRun(self._harness, task, self._session, self._home)
        prompt = self._await_prompt()
        if prompt is None:
            self._raise_failure()
            raise UserCodeError("the harness ended without a request that could be answered")
        return EpisodeOpening(words, self._harness.name, prompt)

    def step(self, response: Response) -> StepOutcome:
        """Answer the request under way, up to the next one, or the end of the harness."""
        asked = self._asked
        if asked is None:
            raise RuntimeError("a response that nobody asked for")
        self._turns += 1
        wanted = asked.wanted
        tokens = unpack(response.tokens, INT32).tolist()
        cut = find_cut(tokens, wanted.max_tokens, wanted.stops, self._prompter.decode_exactly)
        kept = cut_response(response, cut)
        prompted = asked.prompted
        answer = prompted.read(tokens[: cut.length], cut)
        asked.choices.append(self._build_choice(kept, cut, answer.message, wanted))
        prompt: list[int] | None = prompted.prompt
        rewritten = False
        if not asked.needs_more:
            asked.ask.resolve(Answered(asked.choices, len(prompted.prompt)))
            prompt = self._await_prompt()
            rewritten = self._asked is not None and self._asked.prompted.rewritten
        return self._build_outcome(
            kept=kept,
            prompt=prompt,
            rewritten=rewritten,
            anchor=prompted.anchor,
            action=require_text("the policy's answer", answer.action),
            valid=answer.valid,
        )

    def interrupt(self) -> None:
        """Have a call that waits for the harness return, since the episode is broken off."""
        self._session.end(HarnessEnd())

    def close(self) -> None:
        """Cancel the harness if it still runs, and wait until it has let go of what it holds."""
        self._endpoint.close_session(self._session)
        if self._run is not None:
            self._run.cancel()
            self._run.wait()

    # --- requests

    def _await_prompt(self) -> list[int] | None:
        """Wait for the next request that can be answered; None at the end of the harness."""
        self._asked = None
        deadline = time.monotonic() + self._timeout_seconds
        while self._run is not None:
            event = self._session.take(deadline - time.monotonic())
            if event is None:
                raise describe_wait(self._run, self._timeout_seconds)
            if isinstance(event, HarnessEnd):
                self._end = event
                return None
            if event.answer.done():
                continue  # whoever asked has gone
            try:
                self._asked = _AskedTurn(event, self._prompt(event))
            except RequestError as error:
                self._refusal = error.code
                event.refuse(error)
                continue
            self._refusal = ""
            return self._asked.prompted.prompt
        return None

    def _prompt(self, ask: Ask) -> PromptedChat | PromptedText:
        """Make the prompt of a request; RequestError where there is none, or no turn left."""
        request = ask.request
        if self._turns + request.wanted.choices > self._harness.max_turns:
            raise RequestError(
                f"no turns are left: an episode has {self._harness.max_turns} (env.max_turns)",
                code=NO_TURNS_LEFT,
            )
        characters = count_characters(request)
        if characters > self._max_prompt_tokens * LONGEST_TOKEN:
            raise self._overflow(f"{characters:,} characters")
        prompted = self._reader.prompt(request)
        if len(prompted.prompt) > self._max_prompt_tokens:
            raise self._overflow(f"{len(prompted.prompt):,} tokens")
        return prompted

    def _overflow(self, size: str) -> RequestError:
        return RequestError(
            f"This model's maximum context length leaves {self._max_prompt_tokens:,} tokens to a "
            f"prompt, and the messages have {size}: shorten them, or raise engine.max_model_len",
            code=OVERFLOWED,
            param="messages",
        )

    # --- answers

    def _build_choice(
        self, kept: Response, cut: Cut, message: dict[str, Any], wanted: Wanted
    ) -> Choice:
        tokens: Sequence[SampledToken] = ()
        if wanted.log_probs:
            tokens = self._describe_tokens(kept)
        return Choice(
            message=message,
            finish_reason=find_finish_reason(kept.stop, cut.is_limit, message),
            completion_tokens=kept.length,
            tokens=tokens,
        )

    def _describe_tokens(self, kept: Response) -> list[SampledToken]:
        """Give the text and the log-prob of each token."""
        tokens = unpack(kept.tokens, INT32).tolist()
        log_probs = unpack(kept.log_probs, FLOAT32).tolist()
        return [
            SampledToken(
                self._prompter.decode_exactly([token]),
                NO_LOG_PROB if math.isnan(log_prob) else log_prob,
            )
            for token, log_prob in zip(tokens, log_probs, strict=True)
        ]

    # --- outcomes

    def _build_outcome(
        self,
        *,
        kept: Response,
        prompt: list[int] | None,
        rewritten: bool,
        anchor: str,
        action: str,
        valid: bool,
    ) -> StepOutcome:
        """Make the outcome of a turn; of the last one, with the harness's reward."""
        end = Outcome(0.0, success=False)
        overflowed = False
        if prompt is None:
            overflowed = self._was_cut_off(OVERFLOWED)
            end = self._read_end()
        reward = require_reward(end.reward)
        success = reward > 0
        if end.success is not None:
            success = require_flag("success", end.success)
        truncated = require_flag("truncated", end.truncated)
        return StepOutcome(
            anchor=anchor,
            action=action,
            valid=valid,
            reward=reward,
            done=prompt is None and not overflowed,
            success=success,
            truncated=truncated and not success,
            scores=require_scores(end.scores),
            prompt=prompt,
            rewritten=rewritten,
            kept=kept,
        )

    def _was_cut_off(self, code: str) -> bool:
        """Tell whether the harness failed because its last request was refused for this."""
        failed = self._end is not None and self._end.error is not None
        return failed and self._refusal == code

    def _read_end(self) -> Outcome:
        """Return what the harness ended with; UserCodeError if it failed by itself."""
        if self._was_cut_off(OVERFLOWED):
            return Outcome(0.0, success=False)
        if self._was_cut_off(NO_TURNS_LEFT):
            return Outcome(0.0, success=False, truncated=True)
        self._raise_failure()
        value = self._end.value if self._end is not None else None
        if value is None:
            value = self._session.posted
        if value is None:
            raise UserCodeError(NO_REWARD)
        if isinstance(value, Outcome):
            return value
        return Outcome(require_reward(value))

    def _raise_failure(self) -> None:
        """Raise what the harness has raised, if it has."""
        if self._end is not None and self._end.error is not None:
            raise self._end.error
