"""The desk and its engines, before the first turn."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import zmq.asyncio

from controller.leases import SignedLeases
from controller.transport import RouterSocket
from controller.turn_service import TurnService, build_turn_service
from engine.client import GENERATE, EngineError
from engine.pool import Health
from envs.registry import make_environment
from learner.model.policy import load_policy
from learner.publish import WeightWriter, copy_weights
from protocol.codec import FrameReader
from tests.fixtures.faulty_engine import FaultyEngine
from tests.fixtures.runs import job_in, small_config


@asynccontextmanager
async def two_engines(
    directory: Path, policy: Path, with_tap: int = 2, **settings: str
) -> AsyncIterator[tuple[TurnService, list[FaultyEngine], str]]:
    """Start a service and its engines, of which the first `with_tap` send signals.

    The third value is the checksum of the weights that are there as version 0.
    """
    config = small_config(model__name=str(policy), engine__count="2", **settings)
    job = job_in(directory, config)
    written = WeightWriter(Path(job.weights_dir)).write(
        copy_weights(load_policy(policy), 0, "float32")
    )
    context = zmq.asyncio.Context()
    signals = [job.endpoints.signals[0] if number < with_tap else None for number in range(2)]
    ports = [urlsplit(url).port for url in job.endpoints.engines]
    engines = [
        FaultyEngine(policy, port=port, signals=endpoint)
        for port, endpoint in zip(ports, signals, strict=True)
    ]
    for engine in engines:
        await engine.start()
    environment = make_environment(config.env.name, **config.environment_settings())
    actors = RouterSocket(context.socket(zmq.ROUTER), FrameReader())
    desk = build_turn_service(job, context, 0, environment, SignedLeases(""), actors)
    listening = asyncio.create_task(desk.signals.run())
    try:
        yield desk, engines, written.checksum
    finally:
        listening.cancel()
        await desk.close()
        for engine in engines:
            await engine.stop()
        context.destroy(linger=0)


async def test_an_engine_whose_core_dies_before_its_first_signal_is_taken_to_send_some(
    tmp_path: Path, small_policy: Path
) -> None:
    async with two_engines(tmp_path / "run", small_policy) as (desk, engines, checksum):
        engines[1].lose_core(GENERATE, "/health")
        await desk.load_weights(0, checksum)
        assert [health for _, health, _ in desk.engine_status()] == [
            str(Health.HEALTHY),
            str(Health.SUSPECT),
        ]
        assert desk.turns.streamer is None, "signals come from the tap"


async def test_an_engine_that_is_well_and_refuses_its_first_token_is_an_error_of_the_run(
    tmp_path: Path, small_policy: Path
) -> None:
    async with two_engines(tmp_path / "run", small_policy) as (desk, engines, checksum):
        engines[1].lose_core(GENERATE)
        with pytest.raises(EngineError, match="EngineCore"):
            await desk.load_weights(0, checksum)


@pytest.mark.slow
async def test_turns_share_no_prefixes_while_some_engine_may_have_other_weights(
    tmp_path: Path, small_policy: Path
) -> None:
    """Turns share no prefixes with others while some engine may have other weights."""
    async with two_engines(tmp_path / "run", small_policy) as (desk, _, checksum):
        await desk.load_weights(0, checksum)
        before = desk.turns.weights_name
        with pytest.raises(EngineError, match="cannot be read"):  # there is no such file
            await desk.load_weights(1, checksum)
        assert desk.turns.weights_name != before


@pytest.mark.slow
@pytest.mark.parametrize("with_tap", [2, 1])
async def test_tap_that_an_engine_lacks_is_an_error_that_names_the_engine(
    tmp_path: Path, small_policy: Path, with_tap: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tap that is asked for is in all engines or an error that names the one without."""
    monkeypatch.setattr("controller.signals.PROBE_PATIENCE", 10.0 if with_tap == 2 else 1.0)
    async with two_engines(tmp_path / "run", small_policy, with_tap, control__signal="tap") as (
        desk,
        _,
        checksum,
    ):
        if with_tap == 2:
            await desk.load_weights(0, checksum)
            assert desk.turns.streamer is None and desk.signals.frames >= 2, "both were asked"
        else:
            urls = [url for url, _, _ in desk.engine_status()]
            missing = (
                rf"control\.signal tap: no signals come from {urls[1]};"
                rf".*FORAY_TAP_ENDPOINT={desk.signals.endpoint} "
            )
            with pytest.raises(EngineError, match=missing):
                await desk.load_weights(0, checksum)
