"""A harness outside a run: whoever answers, its requests come through an endpoint as in one."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import numpy as np

from actors.endpoint import Endpoint
from actors.harness_stage import HarnessStage
from actors.stage import StepOutcome
from config import Config
from envs.base import Split
from envs.user_errors import source_directory
from protocol.arrays import FLOAT32, INT32, UINT8, pack
from protocol.messages import Response, StopReason
from protocol.transcripts import CodecOf, TextPrompter

Respond = Callable[[list[int]], list[int] | None]
"""Takes the tokens of a prompt, returns those of the response; None for no more."""


def play_requests(
    config: Config,
    harness: Any,
    task: tuple[Split, int],
    prompter: TextPrompter,
    codec_of: CodecOf,
    respond: Respond,
    max_prompt_tokens: int,
) -> Iterator[StepOutcome]:
    """Play a task, and yield each turn, until the harness ends or nobody answers any more.

    UserCodeError for what a run would drop the episode for.
    """
    with closing(_start_endpoint()) as endpoint:
        stage = HarnessStage(
            harness,
            prompter,
            codec_of,
            endpoint,
            max_prompt_tokens=max_prompt_tokens,
            timeout_seconds=config.actor.step_timeout,
            home=source_directory(harness),
        )
        with closing(stage):
            prompt = stage.start(*task, config.run.seed).prompt
            while prompt is not None:
                tokens = respond(prompt)
                if tokens is None:
                    return
                outcome = stage.step(_build_response(tokens))
                yield outcome
                prompt = outcome.prompt


def describe_task(harness: Any, split: Split, index: int) -> str:
    """Describe a task, without the addresses of its objects."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(harness.task(split, index)))


def _start_endpoint() -> Endpoint:
    endpoint = Endpoint()
    endpoint.start()
    return endpoint


def _build_response(tokens: list[int]) -> Response:
    """Make the response that an engine would give, of a policy that was sure of it."""
    return Response(
        tokens=pack(np.array(tokens), INT32),
        log_probs=pack(np.zeros(len(tokens)), FLOAT32),
        mask=pack(np.ones(len(tokens)), UINT8),
        spans=[],
        uncertainty=b"",
        signals=b"",
        events=[],
        stop=StopReason.END,
        score=float("nan"),
        thinking=0,
    )
