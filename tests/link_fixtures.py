"""A serial run whose ZeroMQ connections all go through small TCP proxies, which cut them in every
way that networks do."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import zmq
from rich.console import Console
from run_fixtures import job_in, small_config

from controller.controller import Controller, build_controller
from learner.learner import Learner, build_learner
from supervisor.endpoints import free_port
from supervisor.serial import train_serially
from telemetry.sinks.metrics_file import METRICS_FILE, read_metrics

HEARTBEAT = 0.15
SLOW = 0.1
"""Seconds by which a slow connection is late, each way."""


class Proxy:
    """Carries TCP from `port` to a port of this machine."""

    def __init__(self, target: int) -> None:
        self.port = free_port()
        self.target = target
        self.delay = 0.0
        self._pairs: list[_Pair] = []

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._carry, "127.0.0.1", self.port)

    async def cut(self, way: str) -> int:
        """Cut what is connected now; connections that are made later are carried well.

        Returns how many were cut.
        """
        pairs = [pair for pair in self._pairs if not pair.over]
        self._pairs = []
        for pair in pairs:
            pair.cut(way)
        return len(pairs)

    async def connected(self) -> int:
        """Connections that are carried well."""
        return sum(not pair.over for pair in self._pairs)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there_reader, there = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        pair = _Pair(writer, there)
        self._pairs.append(pair)
        await asyncio.gather(
            self._pump(pair, reader, there), self._pump(pair, there_reader, writer)
        )

    async def _pump(
        self, pair: _Pair, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                if self.delay:
                    await asyncio.sleep(self.delay)
                if not pair.silent:
                    writer.write(data)
                    await writer.drain()
        if not pair.silent:
            pair.cut("both ends")


class _Pair:
    """The two connections of one that is carried; neither hears of the other one's end once they
    are silent."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self._client = client
        self._server = server
        self.silent = self.over = False

    def cut(self, way: str) -> None:
        self.silent = self.over = True
        if way in ("both ends", "the client's end"):
            self._client.transport.abort()
        if way in ("both ends", "the server's end"):
            self._server.transport.abort()


class LinkedRun:
    """The run, in a thread of its own, and its proxies, in another one."""

    def __init__(self, directory: Path) -> None:
        config = small_config(
            run__max_updates="100000",
            run__max_minutes="30",
            learner__checkpoint_every="100000",
            env__max_turns="1",
            sampling__max_tokens="4",
            actor__count="4",
            actor__max_leases="100",
            actor__heartbeat_seconds=str(HEARTBEAT),
            cluster__shards="2",
            engine__count="2",
        )
        self.job = job_in(directory / "run", config)
        self.directory = directory / "run"
        at = self.job.endpoints
        endpoints = {
            "actor-controller": at.actors,
            "actor-shard": at.turns[0],
            "actor-learner": at.trajectories,
            "learner-controller": at.learner,
            "shard-controller": at.shards,
            "engine-controller": at.signals[0],
            "engine-shard": at.signals[1],
            "stats": at.stats,
        }
        self.proxies = {
            link: Proxy(urlsplit(endpoint).port) for link, endpoint in endpoints.items()
        }
        self.through = {proxy.target: proxy.port for proxy in self.proxies.values()}
        self.controller: Controller | None = None
        self.learner: Learner | None = None
        self.result: Future = Future()
        self._proxying = asyncio.new_event_loop()

    def start(self) -> None:
        threading.Thread(target=self._proxying.run_forever, daemon=True).start()
        for proxy in self.proxies.values():
            self.proxied(proxy.start())
        threading.Thread(target=self._train, daemon=True).start()
        self.until(lambda: self.updates() >= 2, 60)

    def proxied(self, call: Coroutine) -> object:
        """The result of a coroutine of a proxy."""
        return asyncio.run_coroutine_threadsafe(call, self._proxying).result(20)

    def connected(self, link: str) -> int:
        return self.proxied(self.proxies[link].connected())

    def updates(self) -> int:
        """How many are recorded."""
        return len(self.recorded())

    def recorded(self) -> list[int]:
        """The number of each update that is recorded."""
        file = self.directory / METRICS_FILE
        return (
            [line["update"] for line in read_metrics(file) if line["kind"] == "update"]
            if file.exists()
            else []
        )

    def until(self, condition: Callable[[], bool], seconds: float = 20.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert not self.result.done(), f"the run ended: {self.result.exception()!r}"
            assert time.monotonic() < deadline, "the run stands still"
            time.sleep(0.02)

    def stop(self) -> dict:
        """Its summary."""
        if not self.result.done():
            self._loop.call_soon_threadsafe(self.learner.stop)
        return self.result.result(60)

    def close(self) -> None:
        with contextlib.suppress(BaseException):
            self.stop()
        self._proxying.call_soon_threadsafe(self._proxying.stop)

    def _train(self) -> None:
        async def train() -> dict:
            self._loop = asyncio.get_running_loop()
            return await train_serially(self.job, Console(quiet=True))

        try:
            self.result.set_result(asyncio.run(train()))
        except BaseException as error:
            self.result.set_exception(error)


@contextlib.contextmanager
def linked_run(directory: Path) -> Iterator[LinkedRun]:
    """A run that trains already. Half of its actors ask the shard for their turns."""
    run = LinkedRun(directory)
    numbers = itertools.count()
    of_actor = {}

    def build_noted_controller(*arguments) -> Controller:
        run.controller = build_controller(*arguments)
        return run.controller

    def build_noted_learner(*arguments, **named) -> Learner:
        run.learner = build_learner(*arguments, **named)
        return run.learner

    connect = zmq.Socket.connect

    def connect_through(socket: zmq.Socket, endpoint: str) -> None:
        parts = urlsplit(endpoint)
        connect(
            socket,
            f"tcp://127.0.0.1:{run.through.get(parts.port, parts.port)}"
            if parts.scheme == "tcp"
            else endpoint,
        )

    def choose_shard(actor: bytes, shards: list) -> object:
        number = of_actor.setdefault(actor, next(numbers))
        return shards[0] if shards and number % 2 else None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("supervisor.serial.build_controller", build_noted_controller)
        patch.setattr("supervisor.serial.build_learner", build_noted_learner)
        patch.setattr("actors.actor.choose_shard", choose_shard)
        patch.setattr(zmq.Socket, "connect", connect_through)
        run.start()
        yield run
        run.close()
