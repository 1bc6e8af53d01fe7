"""Signals of engines, before the first turn."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import zmq.asyncio

from controller.rules.thinking import ThinkTags
from controller.signals import SignalRouter
from controller.think_tokens import ThinkTokens
from engine.client import EngineClient
from engine.fake.server import FakeEngine
from supervisor.endpoints import free_port


@pytest.mark.slow
@pytest.mark.parametrize("tap", [True, False])
async def test_an_engine_is_asked_whether_it_sends_signals(
    small_policy: Path, tap: bool, monkeypatch
) -> None:
    if not tap:
        monkeypatch.setattr("controller.signals.PROBE_PATIENCE", 1.0)
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    engine = FakeEngine(small_policy, signals=endpoint if tap else None)
    client = EngineClient(await engine.start())
    router = SignalRouter(
        zmq.asyncio.Context(), endpoint, ThinkTokens(ThinkTags(), [], [], 1), max_model_len=64
    )
    listening = asyncio.create_task(router.run())
    try:
        assert await router.probe(client) is tap
        assert router.interventions == 0
    finally:
        listening.cancel()
        await client.close()
        await engine.stop()
        router.close()
