"""engine.weights nccl without a GPU: vLLM's own routes, receiving and sending end.

Tensors go through a TCP store where NCCL would carry them. What NCCL itself does is not tested
anywhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from types import MethodType, SimpleNamespace
from typing import ClassVar

import msgspec
import pytest
import torch
import uvicorn
from aiohttp import web
from fastapi import FastAPI
from rich.console import Console
from safetensors.torch import load_file
from vllm.config.weight_transfer import WeightTransferConfig
from vllm.distributed.device_communicators import pynccl
from vllm.distributed.utils import StatelessProcessGroup
from vllm.distributed.weight_transfer import packed_tensor
from vllm.distributed.weight_transfer.base import (
    WeightTransferInitRequest,
    WeightTransferUpdateRequest,
)
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine
from vllm.entrypoints.rl.online.api_router import router
from vllm.model_executor.model_loader.reload import record_metadata_for_reloading
from vllm.model_executor.model_loader.weight_utils import default_weight_loader

import supervisor.serial
from config import ConfigError
from engine.client import EngineError
from engine.constants import NCCL_PACKING
from engine.fake.server import FakeEngine
from engine.nccl_sender import WeightSender
from engine.pool import EnginePool
from learner.publish import (
    Snapshot,
    WeightPublisher,
    Weights,
    WeightWriter,
    describe_transfer,
)
from protocol.messages import Transfer, WeightsPublished
from supervisor.cli import train
from supervisor.endpoints import free_port
from supervisor.serial import train_serially
from tests.fixtures.runs import job_in, small_config, trajectories_of

pytestmark = pytest.mark.filterwarnings("ignore:Tensor .* exceeds buffer_size_bytes")


class StoreCommunicator:
    """Stands in the place of PyNcclCommunicator, for the same group.

    Nobody goes on before all ranks have taken part, as with NCCL.
    """

    def __init__(self, group: StatelessProcessGroup, device: object) -> None:
        self._group = group
        group.all_gather_obj(None)

    def broadcast(self, tensor: torch.Tensor, src: int) -> None:
        sent = self._group.broadcast(tensor, src)
        if self._group.rank != src:
            tensor.copy_(sent)
        self._group.all_gather_obj(None)

    def destroy(self) -> None:
        pass


@pytest.fixture(autouse=True)
def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace what vLLM asks of a GPU.

    Buffers are small, so that there are several, and the wait for ranks that never come is short.
    """
    monkeypatch.setattr(pynccl, "PyNcclCommunicator", StoreCommunicator)
    monkeypatch.setattr(
        packed_tensor,
        "_get_streams",
        lambda device, number: (SimpleNamespace(synchronize=lambda: None),) * number,
    )
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda: None)
    create = functools.partial(StatelessProcessGroup.create, store_timeout=60)
    monkeypatch.setattr(StatelessProcessGroup, "create", staticmethod(create))
    monkeypatch.setitem(NCCL_PACKING, "packed_buffer_size_bytes", 5000)


def load_weights(model: torch.nn.Module, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
    """As vLLM's models do it: each parameter has a loader of its own, or the usual one."""
    own = dict(model.named_parameters())
    for name, tensor in weights:
        getattr(own[name], "weight_loader", default_weight_loader)(own[name], tensor)


def receiver(model: torch.nn.Module) -> NCCLWeightTransferEngine:
    """The receiving end in an engine's one worker."""
    record_metadata_for_reloading(model)  # as when vLLM has built a model
    model.load_weights = MethodType(load_weights, model)
    parallel = SimpleNamespace(data_parallel_index=0, world_size=1, rank=0)
    config = SimpleNamespace(
        parallel_config=parallel, model_config=SimpleNamespace(dtype=torch.float32)
    )
    return NCCLWeightTransferEngine(
        WeightTransferConfig(backend="nccl"), config, torch.device("cpu"), model
    )


class Worker:
    """Worker as vLLM's routes call it in an engine, as far as weights go; remembers the calls."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self.model = torch.nn.Module()
        for name, tensor in tensors.items():
            self.model.register_parameter(
                name, torch.nn.Parameter(torch.zeros_like(tensor), requires_grad=False)
            )
        self._receiver = receiver(self.model)
        self.vllm_config = SimpleNamespace(
            parallel_config=SimpleNamespace(world_size=1, world_size_across_dp=1)
        )
        self.calls: list[str] = []
        self.version = "default"

    async def shutdown_weight_transfer_engine(self) -> None:
        self._receiver.shutdown()

    async def init_weight_transfer_engine(self, request: WeightTransferInitRequest) -> None:
        await asyncio.to_thread(
            self._receiver.init_transfer_engine, self._receiver.parse_init_info(request.init_info)
        )

    async def pause_generation(self, mode: str, clear_cache: bool) -> None:
        self.calls.append(f"pause {mode}")

    async def start_weight_update(self) -> None:
        self.calls.append("start")
        self._receiver.start_weight_update()

    async def update_weights(self, request: WeightTransferUpdateRequest) -> None:
        self.calls.append("update")
        await asyncio.to_thread(self._receiver.update_weights, request.update_info)

    async def finish_weight_update(self, version: str | None) -> None:
        self.calls.append("finish")
        self._receiver.finish_weight_update()
        self.version = version

    async def resume_generation(self) -> None:
        self.calls.append("resume")

    async def update_weight_version(self, version: str) -> None:
        self.version = version

    async def get_weight_version(self) -> str:
        return self.version


@contextlib.asynccontextmanager
async def served(workers: list[Worker]) -> AsyncIterator[list[str]]:
    """Each worker behind vLLM's own routes; their addresses."""
    servers = []
    urls = []
    async with asyncio.TaskGroup() as running:
        for worker in workers:
            app = FastAPI()
            app.include_router(router)
            app.state.engine_client = worker
            listening = socket.create_server(("127.0.0.1", 0))
            servers.append(uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off")))
            running.create_task(servers[-1].serve([listening]))
            urls.append(f"http://127.0.0.1:{listening.getsockname()[1]}")
        yield urls
        for server in servers:
            server.should_exit = True


def some_weights(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Some larger and some smaller than a buffer, one of a single number."""
    random = torch.Generator().manual_seed(seed)
    shapes = [(40, 70), (7,), (1,), (3, 5, 2), (60, 50), (1000,), (11, 13)]
    return {
        f"w{i}": torch.randn(shape, generator=random).to(dtype) for i, shape in enumerate(shapes)
    }


class Run:
    """Both ends of a run that sends weights to engines: the learner's, and the controller's."""

    def __init__(self, urls: list[str]) -> None:
        self._endpoint = f"tcp://127.0.0.1:{free_port()}"
        self._sender = WeightSender(self._endpoint, len(urls))
        self._pool = EnginePool(urls)
        self._joined = False

    async def __aenter__(self) -> Run:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._pool.close()

    async def update(self, tensors: dict[str, torch.Tensor], version: int) -> float:
        sending = asyncio.create_task(asyncio.to_thread(self._sender.send, tensors))
        try:
            if not self._joined:
                await self._pool.init_nccl_group(self._endpoint, deadline=60.0)
                self._joined = True
            return await self._pool.receive_weights(
                describe_transfer(Snapshot(version, tensors)), version, deadline=60.0
            )
        finally:
            await sending


def holds(worker: Worker, tensors: dict[str, torch.Tensor]) -> bool:
    own = dict(worker.model.named_parameters())
    return own.keys() == tensors.keys() and all(
        torch.equal(own[name], tensor) for name, tensor in tensors.items()
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
async def test_every_engine_receives_each_version_bit_for_bit(dtype: torch.dtype) -> None:
    workers = [Worker(some_weights(0, dtype)), Worker(some_weights(0, dtype))]
    async with served(workers) as urls, Run(urls) as run:
        for version in (1, 2):
            assert await run.update(some_weights(version, dtype), version) > 0
            assert all(
                holds(worker, some_weights(version, dtype)) and worker.version == str(version)
                for worker in workers
            )
    assert all(
        worker.calls == ["pause keep", "start", "update", "finish", "resume"] * 2
        for worker in workers
    )


async def test_an_engine_of_an_earlier_run_receives_weights_whose_version_it_had_then() -> None:
    worker = Worker(some_weights(0))
    async with served([worker]) as urls:
        for seed in (1, 2):
            async with Run(urls) as run:
                assert await run.update(some_weights(seed), 1) > 0
            assert holds(worker, some_weights(seed))


async def test_tensors_that_an_engine_does_not_expect_are_an_error_that_says_why() -> None:
    """vLLM's receiving end takes any names; its models do not."""
    worker = Worker(some_weights(0))
    async with served([worker]) as urls, Run(urls) as run:
        with pytest.raises(EngineError, match="update_weights: 500"):
            await run.update({"another": torch.zeros(3)}, 1)
    assert worker.calls == ["pause keep", "start", "update"]


class OutboxController:
    """The controller's end, which remembers what it is told."""

    def __init__(self, events: list[object]) -> None:
        self._events = events

    async def send(self, message: WeightsPublished) -> None:
        self._events.append(message)


class OutboxSender:
    """The sending end of NCCL, which fails if that is asked for."""

    def __init__(self, events: list[object], fails: bool) -> None:
        self._events = events
        self._fails = fails

    def send(self, tensors: dict[str, torch.Tensor]) -> None:
        self._events.append(list(tensors))
        if self._fails:
            raise RuntimeError("NCCL is gone")


class Outbox:
    """Source, sender and controller of a publisher: all that it did, in order.

    Sending fails if that is asked for.
    """

    def __init__(self, fails: bool = False) -> None:
        self.events: list[object] = []
        self._fails = fails

    async def take_snapshot(self) -> Snapshot:
        return Snapshot(
            7,
            {
                "b": torch.zeros(2, 3, dtype=torch.bfloat16),
                "a": torch.zeros(4, dtype=torch.bfloat16),
            },
        )

    def recycle(self, snapshot: Snapshot, weights: Weights) -> None:
        self.events.append("used")

    def publisher(self, directory: Path, tasks: asyncio.TaskGroup) -> WeightPublisher:
        return WeightPublisher(
            self,
            WeightWriter(directory),
            OutboxController(self.events),
            tasks,
            sender=OutboxSender(self.events, self._fails),
        )


async def test_weights_are_announced_before_they_are_sent_and_sent_once(
    tmp_path: Path,
) -> None:
    """Weights are announced before they are sent, and sent once.

    The last ones are announced again all the same.
    """
    box = Outbox()
    async with asyncio.TaskGroup() as tasks:
        publisher = box.publisher(tmp_path, tasks)
        await publisher.publish(7, [1, 2])
        await publisher.publish(7, [], last=True)
    sent = Transfer(["b", "a"], ["bfloat16", "bfloat16"], [[2, 3], [4]])
    first = WeightsPublished(version=7, checksum="", trained=[1, 2], transfer=sent)
    assert box.events == [
        first,
        ["b", "a"],
        "used",
        msgspec.structs.replace(first, trained=[], last=True),
    ]
    assert (publisher.newest.version, publisher.newest.size) == (7, 20)


async def test_a_sending_that_fails_fails_the_learner(tmp_path: Path) -> None:
    box = Outbox(fails=True)
    with pytest.RaisesGroup(pytest.RaisesExc(RuntimeError, match="NCCL is gone")):
        async with asyncio.TaskGroup() as tasks:
            await box.publisher(tmp_path, tasks).publish(7, [1])
    assert "used" not in box.events, "its memory may still be read"


def test_the_engine_of_serial_has_no_gpu() -> None:
    with pytest.raises(ConfigError, match=r"engine\.weights: --serial"):
        train.check_settings(small_config(engine__weights="nccl"), serial=True)


class FakeOverNccl(FakeEngine):
    """The engine of `--serial`, which gets its weights as a worker of vLLM does."""

    started: ClassVar[list[FakeOverNccl]] = []

    async def start(self) -> str:
        url = await super().start()
        self.updates: list[dict] = []
        self._receiver = receiver(self.generator.model)
        self.started.append(self)
        return url

    def routes(self) -> list[web.RouteDef]:
        return [
            *super().routes(),
            web.post("/shutdown_weight_transfer_engine", self._done),
            web.post("/update_weight_version", self._done),
            web.post("/init_weight_transfer_engine", self._join),
            web.get("/get_world_size", self._world_size),
        ]

    async def _done(self, raw: web.Request) -> web.Response:
        return web.json_response({})

    async def _world_size(self, raw: web.Request) -> web.Response:
        return web.json_response({"world_size": 1})

    async def _join(self, raw: web.Request) -> web.Response:
        info = self._receiver.parse_init_info((await raw.json())["init_info"])
        await asyncio.to_thread(self._receiver.init_transfer_engine, info)
        return web.json_response({})

    async def _start_update(self, raw: web.Request) -> web.Response:
        answer = await super()._start_update(raw)
        self._receiver.start_weight_update()
        return answer

    async def _update(self, raw: web.Request) -> web.Response:
        self.updates.append((await raw.json())["update_info"])
        await asyncio.to_thread(self._receiver.update_weights, self.updates[-1])
        self._loaded = True
        return web.json_response({})

    async def _finish_update(self, raw: web.Request) -> web.Response:
        self._receiver.finish_weight_update()
        return await super()._finish_update(raw)


def test_a_whole_run_sends_each_version_once_to_all_engines_and_writes_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor.serial, "FakeEngine", FakeOverNccl)
    monkeypatch.setattr(FakeOverNccl, "started", [])
    settings = {
        "engine__weights": "nccl",
        "engine__count": "2",
        "engine__dtype": "bfloat16",
        "learner__max_staleness": "0",
    }
    learning = {
        "learner__entropy_coef": "1",
        "learner__learning_rate": "1e-2",
        "env__max_turns": "3",
    }
    job = job_in(tmp_path / "run", small_config(**settings, **learning))
    summary = asyncio.run(train_serially(job, Console(quiet=True)))
    assert (summary["ended"], summary["updates"]) == ("finished", 2)
    assert {
        span.version
        for t in trajectories_of(tmp_path / "run")
        for turn in t.turns
        for span in turn.kept.spans
    } == {0, 1, 2}
    *_, before, final = (
        load_file(path / "model.safetensors")
        for path in sorted((tmp_path / "run" / "checkpoints").iterdir())
    )
    assert any(not torch.equal(before[name], final[name]) for name in final), (
        "nothing was trained, so nothing is shown"
    )
    for engine in FakeOverNccl.started:
        assert [update["dtype_names"] for update in engine.updates] == [
            ["bfloat16"] * len(final)
        ] * 3
        held = engine.generator.weights()
        assert all(torch.equal(held[name], final[name].bfloat16().float()) for name in final)
    assert not list(tmp_path.rglob("v*.safetensors"))
