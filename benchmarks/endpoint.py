"""Measure what the endpoint of agents costs, beside a conversation that is an environment.

`python -m benchmarks.endpoint [--streams N] [--repeats N] [--quick] [--json FILE]`

All ways play the same conversations in one actor, streams at a time, and ask for the same turns:

    environment          a conversation, as envs/conversation.py has it
    endpoint             a harness that asks by OpenAI's client, in the actor's own process
    endpoint, bare HTTP  the same without that client, whose work is the agent's own

An engine is stood in for by a wait, as long as one takes that gives each stream `--speed` tokens a
second, give or take a half. Ways take turns; figures are medians of the rounds. Ratios are turns a
second over those of the environment. CPU time is that of all threads of the actor.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import random
import statistics
import time
from collections.abc import Sequence
from operator import truediv
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
from rich.console import Console
from rich.table import Table

from actors.episode import EpisodePlayer
from config import TinySection
from envs.conversation import Message, Reply
from envs.registry import Environments
from learner.warm_start.tiny import CHAT_TEMPLATE, train_tokenizer
from protocol.arrays import FLOAT32, INT32, UINT8, pack
from protocol.chat_format import ChatFormat
from protocol.messages import (
    EpisodeKey,
    Lease,
    Response,
    Span,
    StopReason,
    Trajectory,
    TurnRequest,
    TurnResult,
)
from protocol.prompting import Prompter

TURNS = 8
"""Turns of an episode."""

RESPONSE_WORDS = 60
QUESTION = "Which number comes next, and why does it? Think about it before you say it."
ANSWER = " ".join(str(number) for number in range(RESPONSE_WORDS))


class Talk:
    """An environment, and its only episode: so many questions."""

    name = task = task_type = "talk"
    max_turns = TURNS
    tools = ()
    scores: dict[str, float] = {}  # noqa: RUF012
    messages = (Message("user", QUESTION),)

    def __init__(self) -> None:
        self._turns = 0

    def size(self, split: str) -> int:
        return 1

    def start(self, split: str, index: int, seed: int) -> Talk:
        return Talk()

    def reply(self, message: Message) -> Reply:
        self._turns += 1
        if self._turns == TURNS:
            return Reply(done=True)
        return Reply([Message("user", QUESTION)])


class TalkHarness:
    """The same questions, asked by OpenAI's client."""

    name = "talk"
    max_turns = TURNS

    def size(self, split: str) -> int:
        return 1

    def task(self, split: str, index: int) -> str:
        return "talk"

    async def episode(self, task: str, client: Any) -> float:
        messages: list[Any] = []
        for _ in range(TURNS):
            messages.append({"role": "user", "content": QUESTION})
            answer = await client.chat.completions.create(model="policy", messages=messages)
            messages.append(answer.choices[0].message)
        return 0.0


class BareHarness(TalkHarness):
    """The same questions, without OpenAI's client, which takes most of the time."""

    async def episode(self, task: str, client: Any) -> float:
        messages: list[Any] = []
        url = f"{client.base_url}chat/completions"
        headers = {"Authorization": f"Bearer {client.api_key}"}
        async with aiohttp.ClientSession(headers=headers) as http:
            for _ in range(TURNS):
                messages.append({"role": "user", "content": QUESTION})
                body = {"model": "policy", "messages": messages}
                async with http.post(url, json=body, raise_for_status=True) as answer:
                    messages.append((await answer.json())["choices"][0]["message"])
        return 0.0


DIRECT = "environment"
CLIENT = "endpoint"
BARE = "endpoint, bare HTTP"
WAYS: dict[str, type] = {DIRECT: Talk, CLIENT: TalkHarness, BARE: BareHarness}


class Speed(NamedTuple):
    """What one way has done in a round."""

    turns_per_s: float
    cpu_ms_per_turn: float


class WaitingEngine:
    """Stands in for an engine: gives the same response, in the time that its tokens take."""

    def __init__(self, tokens: Sequence[int], tokens_per_s: float) -> None:
        length = len(tokens)
        self._seconds = length / tokens_per_s
        self._response = Response(
            tokens=pack(tokens, INT32),
            log_probs=pack([-0.5] * length, FLOAT32),
            mask=pack([1] * length, UINT8),
            spans=[Span(0, length, 0)],
            uncertainty=b"",
            signals=b"",
            events=[],
            stop=StopReason.END,
            score=0.0,
            thinking=0,
        )

    def _draw_length(self, request: TurnRequest) -> float:
        """Draw how long a turn takes, so that streams do not go in step; the same in all rounds."""
        return random.Random(f"{request.key.id} {request.turn_index}").uniform(0.5, 1.5)

    async def take_turn(self, request: TurnRequest) -> TurnResult:
        """Answer a turn after a while."""
        await asyncio.sleep(self._seconds * self._draw_length(request))
        return TurnResult(
            key=request.key,
            lease_attempt=request.lease_attempt,
            turn_index=request.turn_index,
            kept=self._response,
            rejected=[],
        )


def main() -> None:
    """Measure all ways, and print a table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.endpoint", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--streams", type=int, default=64, help="default %(default)s")
    parser.add_argument("--speed", type=float, default=64.0, help="default %(default)s")
    parser.add_argument("--repeats", type=int, default=5, help="rounds, default %(default)s")
    parser.add_argument("--quick", action="store_true", help="one round")
    parser.add_argument("--json", type=Path, help="write the table's figures to this file, too")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    rounds = 1 if options.quick else options.repeats
    figures = measure(options.streams, options.speed, rounds)
    print_table(figures, options.streams, Console())
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))


def measure(streams: int, tokens_per_s: float, rounds: int) -> dict[str, dict[str, float]]:
    """Measure all ways, one after the other in each round; medians by way and name."""
    tokenizer = train_tokenizer(TinySection(vocabulary=600), [(QUESTION, ANSWER)])
    prompter = Prompter(tokenizer.to_str().encode(), ChatFormat(CHAT_TEMPLATE))
    engine = WaitingEngine(prompter.encode([f"{ANSWER}<|im_end|>"])[0], tokens_per_s)
    found: dict[str, list[Speed]] = {way: [] for way in WAYS}
    for kind in WAYS.values():  # modules are imported, and caches filled
        asyncio.run(play(kind(), prompter, engine, 2))
    for _ in range(rounds):
        for way, kind in WAYS.items():
            found[way].append(asyncio.run(play(kind(), prompter, engine, streams)))
    figures = {}
    for way, speeds in found.items():
        rates = [each.turns_per_s for each in speeds]
        direct_rates = [each.turns_per_s for each in found[DIRECT]]
        figures[way] = {
            "turns_per_s": statistics.median(rates),
            "cpu_ms_per_turn": statistics.median(each.cpu_ms_per_turn for each in speeds),
            "ratio": statistics.median(map(truediv, rates, direct_rates)),
        }
    return figures


async def play(environment: Any, prompter: Prompter, engine: WaitingEngine, streams: int) -> Speed:
    """Play an episode in each stream, all at once; RuntimeError if one failed."""
    player = EpisodePlayer(
        Environments(environment),
        prompter,
        engine.take_turn,
        step_timeout=60.0,
        max_prompt_tokens=1 << 20,
        anchor_texts=False,
    )
    began_s = time.monotonic()
    began_cpu_s = time.process_time()
    leases = [
        Lease(key=EpisodeKey(0, number), lease_attempt=0, split="train", task_index=0, seed=number)
        for number in range(streams)
    ]
    trajectories = await asyncio.gather(*map(player.play, leases))
    seconds = time.monotonic() - began_s
    cpu_s = time.process_time() - began_cpu_s
    await player.wait_closed(5.0)
    turns = sum(map(count_turns, trajectories))
    return Speed(turns / seconds, 1000 * cpu_s / turns)


def count_turns(trajectory: Trajectory | None) -> int:
    """Count the turns of an episode; RuntimeError if they are not all there."""
    if trajectory is None or len(trajectory.turns) != TURNS:
        raise RuntimeError(f"an episode has not been played as it should: {trajectory}")
    return TURNS


def print_table(figures: dict[str, dict[str, float]], streams: int, console: Console) -> None:
    """Print what was measured."""
    table = Table("way", "turns/s", "ratio", "CPU ms a turn", title=f"{streams} streams")
    for way, found in figures.items():
        table.add_row(
            way,
            f"{found['turns_per_s']:.1f}",
            f"{found['ratio']:.3f}",
            f"{found['cpu_ms_per_turn']:.2f}",
        )
    console.print(table)


if __name__ == "__main__":
    main()
