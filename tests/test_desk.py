"""The desk and its engines, before the first turn."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import zmq.asyncio

pytest.importorskip("torch")
pytest.importorskip("transformers")

from run_fixtures import job_in, small_config

from controller.desk import Desk
from controller.engine.client import EngineError
from controller.engine.fake import FakeEngine
from controller.engine.pool import Health
from envs.registry import make_environment
from learner.policy import load_policy
from learner.publish import Publisher, snapshot
from tests.engine_fixtures import lose_core


@asynccontextmanager
async def two_engines(directory: Path, policy: Path) -> AsyncIterator[tuple[Desk, list[FakeEngine], str]]:
    """A desk, its engines, and the checksum of the weights that are there as version 0."""
    config = small_config(model__name=str(policy), engine__count="2")
    job = job_in(directory, config)
    written = Publisher(Path(job.weights_dir)).write(snapshot(load_policy(policy), 0, "float32"))
    context = zmq.asyncio.Context()
    engines = [FakeEngine(policy, port=urlsplit(url).port, signals=job.endpoints.signals[0]) for url in job.endpoints.engines]
    for engine in engines:
        await engine.start()
    environment = make_environment(config.env.name, **config.environment_settings())
    desk = Desk(job, context, None, 0, environment, lambda *_: True, lambda *_: asyncio.sleep(0))
    listening = asyncio.create_task(desk.signals.run())
    try:
        yield desk, engines, written.checksum
    finally:
        listening.cancel()
        await desk.close()
        for engine in engines:
            await engine.stop()
        context.destroy(linger=0)


async def test_an_engine_whose_core_dies_before_its_first_signal_is_taken_to_send_some(tmp_path: Path, small_policy: Path) -> None:
    async with two_engines(tmp_path / "run", small_policy) as (desk, engines, checksum):
        lose_core(engines[1], "/inference/v1/generate", "/health")
        await desk.load(0, checksum)
        assert [health for _, health, _ in desk.standing()] == [str(Health.HEALTHY), str(Health.SUSPECT)]
        assert desk.turns.streamer is None, "signals come from the tap"


async def test_an_engine_that_is_well_and_refuses_its_first_token_is_an_error_of_the_run(tmp_path: Path, small_policy: Path) -> None:
    async with two_engines(tmp_path / "run", small_policy) as (desk, engines, checksum):
        lose_core(engines[1], "/inference/v1/generate")
        with pytest.raises(EngineError, match="EngineCore"):
            await desk.load(0, checksum)
