"""Make the tiny policy of a run, so that an engine can load it.

`python -m learner.warm_start.build JOB` writes random weights and a tokenizer. It tells the
supervisor how far it is, as the learner does, which begins when it has ended.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import zmq.asyncio

from config import ConfigError, Job
from envs.registry import make_environment
from learner.warm_start.conversation_file import read_conversations
from learner.warm_start.demonstrations import NoDemonstrations, list_texts, play_tasks
from learner.warm_start.tiny import build_tiny
from protocol.codec import FrameReader
from protocol.delivery import DeliveryClient
from protocol.security import admit_key_holders, load_keys
from telemetry.state import BUILDING, phase_stats

TOKENIZER_EPISODES = 500
"""Demonstrations that the tokenizer learns its words from; more of them change nothing."""

ReportEpisodes = Callable[[int, int], None]
"""Takes how many of how many demonstrations have been played."""

CLOSING_S = 1.0
"""Seconds in which the supervisor confirms what was said last."""


def build_policy(job: Job, report: ReportEpisodes | None = None) -> None:
    """Write the policy to the job's model directory, unless it is there."""
    directory = Path(job.model_dir)
    if directory.exists():
        return
    config = job.config
    build_tiny(directory, config.model.tiny, _play_turns(job, report), config.run.seed)


def _play_turns(job: Job, report: ReportEpisodes | None) -> Iterator[tuple[str, str]]:
    """Yield the (prompt, response) texts that the tokenizer learns from, and report episodes.

    They are of the expert, unless the policy is to learn from a file alone, and of that file.
    """
    config = job.config
    if config.warm_start.data:
        environment = make_environment(config.env.name, **config.environment_settings())
        for conversation in read_conversations(config, environment):
            yield from list_texts(conversation.episode)
        if not config.warm_start.episodes:
            return
    for number, episode in enumerate(play_tasks(config, TOKENIZER_EPISODES), 1):
        if episode is not None:
            yield from list_texts(episode)
        if report is not None:
            report(number, TOKENIZER_EPISODES)


async def _build_and_report(job: Job) -> None:
    """Write the policy, and tell the supervisor how far it is."""
    loop = asyncio.get_running_loop()
    context = zmq.asyncio.Context()
    keys = load_keys(job.config.security.keys)
    stats = DeliveryClient(
        context,
        job.endpoints.stats,
        b"learner",
        b"supervisor",
        keys,
        job.config.actor.heartbeat_seconds,
        FrameReader(),
    )

    def report(done: int, total: int) -> None:
        message = phase_stats("learner", BUILDING, done, total)
        asyncio.run_coroutine_threadsafe(stats.send(message), loop)

    async with admit_key_holders(context, keys):
        confirming = asyncio.create_task(stats.run_send_only())
        try:
            await asyncio.to_thread(build_policy, job, report)
        finally:
            confirming.cancel()
            await asyncio.wait([confirming])
            await stats.close(CLOSING_S)
    context.term()


if __name__ == "__main__":
    try:
        asyncio.run(_build_and_report(Job.load(Path(sys.argv[1]))))
    except (NoDemonstrations, ConfigError) as error:
        sys.exit(f"error: {error}")
