"""A tiny random policy on disk, the same served by real vLLM and by the fake engine, and a
controller's end of the signals."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import itertools
import os
import random
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
import zmq
import zmq.asyncio
from aiohttp import web

from config import Endpoints, Job
from config.resolve import resolve
from controller.rules.scores import Signal
from controller.rules.thinking import RuleSpec
from engine.client import EngineClient, Sampling
from engine.launch import engine_command, wait_ready
from engine.responses import Generation
from engine.weight_update import apply_weights
from protocol.arrays import FLOAT32, INT32, unpack
from protocol.codec import decode, encode
from protocol.lifetime import dying_with_parent
from protocol.messages import ForceTokens, SignalFrame
from supervisor.endpoints import free_port
from supervisor.process import python_module

if TYPE_CHECKING:
    import torch

    from engine.fake.server import FakeEngine

ROOT = Path(__file__).resolve().parent.parent

VOCABULARY = 512
TOP_J = 5


def build_tiny_model(
    directory: Path,
    *,
    vocabulary: int = VOCABULARY,
    hidden: int = 64,
    layers: int = 2,
    heads: int = 2,
    seed: int = 0,
    scale: float = 0.2,
) -> Path:
    """Write a Qwen3 model with random float32 weights (std `scale`) and a one-token-a-word
    tokenizer; returns `directory`.

    It has no end-of-sequence token, so that responses have the length that a test asks for.
    """
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=32,
        max_position_embeddings=2048,
        tie_word_embeddings=True,  # as the default policy: a tied head is packed apart
        initializer_range=scale,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    Qwen3ForCausalLM(config).save_pretrained(directory)
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(vocabulary)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(directory)
    return directory


@dataclass(frozen=True)
class Weights:
    """One set of weights: the model directory, its safetensors file and that file's SHA-256."""

    directory: Path
    file: str
    checksum: str


@dataclass(frozen=True)
class Policies:
    """Two sets of weights of one architecture. Engines start with `first`."""

    first: Weights
    second: Weights


@pytest.fixture(scope="session")
def policies(tmp_path_factory: pytest.TempPathFactory) -> Policies:
    pytest.importorskip("transformers")
    both = []
    for seed in (0, 1):
        directory = build_tiny_model(tmp_path_factory.mktemp(f"policy{seed}"), seed=seed)
        file = directory / "model.safetensors"
        both.append(Weights(directory, str(file), hashlib.sha256(file.read_bytes()).hexdigest()))
    return Policies(*both)


KEY = "sesame"
"""Of every engine that tests share."""


@dataclass(frozen=True)
class RealEngine:
    """A vLLM server that runs for the whole session."""

    url: str
    signals: str


@pytest.fixture(scope="session")
def real_engine(
    policies: Policies, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RealEngine]:
    """The one that all tests share."""
    with vllm_server(policies, tmp_path_factory.mktemp("engine")) as engine:
        yield engine


@contextlib.contextmanager
def vllm_server(policies: Policies, directory: Path, **settings: str) -> Iterator[RealEngine]:
    """vLLM's server with policies.first, as a run starts it; `settings` are named section__name."""
    found = metadata.entry_points(group="vllm.general_plugins")
    assert any(entry.name == "foray" for entry in found), (
        "our plugin is not installed where vLLM looks for it: pip install -e '.[cpu,test]'"
    )
    nowhere = "tcp://127.0.0.1:1"
    base = {
        "engine.dtype": "float32",
        "engine.kv_cache_gb": "0.25",
        "control.t2po.top_j": str(TOP_J),
    }
    signals = f"tcp://127.0.0.1:{free_port()}"
    url = f"http://127.0.0.1:{free_port()}"
    job = Job(
        config=resolve(
            None, base | {name.replace("__", "."): value for name, value in settings.items()}
        ),
        endpoints=Endpoints(
            actors=nowhere,
            learner=nowhere,
            signals=[signals],
            trajectories=nowhere,
            stats=nowhere,
            dashboard=nowhere,
            engines=[url],
        ),
        run_dir="",
        model_dir=str(policies.first.directory),
        weights_dir="",
        engine_key=KEY,
    )
    command = engine_command(job)
    log = directory / "engine.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            python_module(command.arguments),
            env={**os.environ, **command.environment, "PYTHONPATH": str(ROOT)},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=dying_with_parent(),
        )
    try:
        with ThreadPoolExecutor(
            1
        ) as elsewhere:  # the first test that asks for the engine is in an event loop already
            elsewhere.submit(lambda: asyncio.run(wait_ready(url, 180.0, KEY))).result()
        yield RealEngine(url, signals)
    except Exception:
        print(log.read_text()[-4000:])
        raise
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def lose_core(engine: FakeEngine, *paths: str) -> None:
    """Its server answers and can do nothing, as vLLM's whose core has died: all it is asked for, or
    `paths` alone."""

    async def fail(request: web.Request) -> web.Response:
        return web.Response(
            status=503 if request.path == "/health" else 500, text="EngineCore encountered an issue"
        )

    for route in engine._runner.app.router.routes():
        if not paths or route.resource.canonical in paths:
            route._handler = fail


@dataclass
class Signals:
    """What one turn's rows of the signal frames said, in the order of their arrival."""

    position: list[int] = field(default_factory=list)
    entropy: list[float] = field(default_factory=list)
    confidence: list[float] = field(default_factory=list)
    top_log_prob: list[float] = field(default_factory=list)
    forced: list[int] = field(default_factory=list)
    previous: list[int] = field(default_factory=list)

    def rows(self) -> list[Signal]:
        """As rules take them."""
        columns = (
            self.position,
            self.entropy,
            self.confidence,
            self.top_log_prob,
            self.forced,
            self.previous,
        )
        return [Signal(*row) for row in zip(*columns, strict=True)]


class Watcher:
    """A controller's ROUTER: collects signals by turn, and steers."""

    def __init__(self, socket: zmq.asyncio.Socket) -> None:
        self._socket = socket
        self._peer = b""
        self._arrived = asyncio.Event()
        self.turns: dict[str, Signals] = {}

    async def run(self) -> None:
        while True:
            self._peer, raw = await self._socket.recv_multipart()
            frame = decode(raw)
            assert isinstance(frame, SignalFrame)
            for i, turn_id in enumerate(frame.turn_ids):
                signals = self.turns.setdefault(turn_id, Signals())
                for name in ("position", "forced", "previous"):
                    getattr(signals, name).append(int(unpack(getattr(frame, name), INT32)[i]))
                for name in ("entropy", "confidence", "top_log_prob"):
                    getattr(signals, name).append(float(unpack(getattr(frame, name), FLOAT32)[i]))
            self._arrived.set()

    async def until(self, turn_id: str, rows: int) -> Signals:
        """The turn's signals, once there are at least `rows` of them."""
        async with asyncio.timeout(20):
            while len(self.turns.get(turn_id, Signals()).position) < rows:
                self._arrived.clear()
                await self._arrived.wait()
        return self.turns[turn_id]

    async def steer(self, turn_id: str, tokens: list[int], unless: int = -1) -> None:
        await self._socket.send_multipart(
            [self._peer, encode(ForceTokens(turn_id=turn_id, tokens=tokens, unless=unless))]
        )


class Link:
    """A TCP proxy between a controller and an engine, which can be cut.

    `async with Link(url) as link`: the engine is at `link.url`.
    """

    def __init__(self, url: str) -> None:
        self._place = urlsplit(url)
        self._connections: list[
            tuple[asyncio.StreamWriter, asyncio.StreamWriter]
        ] = []  # (to the controller, to the engine)
        self._pumps: list[asyncio.Task[None]] = []
        self._held: asyncio.Event | None = None  # set: what arrives from now on waits for it

    async def __aenter__(self) -> Link:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for pump in self._pumps:
            pump.cancel()
        for writers in self._connections:
            for writer in writers:
                writer.transport.abort()

    def cut(self, *, controllers_end: bool, engines_end: bool) -> None:
        """Reset these ends of all connections that there are; an end that stays is never heard of
        again."""
        for pump in self._pumps:
            pump.cancel()
        for to_controller, to_engine in self._connections:
            if controllers_end:
                to_controller.transport.abort()
            if engines_end:
                to_engine.transport.abort()

    def hold(self) -> Callable[[], None]:
        """Forward nothing, on any connection, until what is returned is called."""
        held = self._held = asyncio.Event()
        return held.set

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_engine, to_engine = await asyncio.open_connection(
            self._place.hostname, self._place.port
        )
        self._connections.append((writer, to_engine))
        self._pumps += [
            asyncio.create_task(self._pump(reader, to_engine)),
            asyncio.create_task(self._pump(from_engine, writer)),
        ]

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                if self._held is not None:
                    await self._held.wait()
                writer.write(data)
                await writer.drain()
            writer.close()


_names = itertools.count()
_versions = itertools.count(1)


@dataclass
class Engine:
    """An engine under test, with everything that a controller has."""

    kind: str
    url: str
    client: EngineClient
    watcher: Watcher
    policies: Policies

    async def run(self, weights: Weights, *, verify: bool = False) -> int:
        """Make the engine run `weights`; returns their version, new at each call."""
        version = next(_versions)
        await apply_weights(
            self.client, weights.file, version, weights.checksum, deadline=20.0, verify=verify
        )
        return version

    def start(
        self,
        *,
        turn_id: str = "",
        prompt: list[int] | None = None,
        max_tokens: int = 24,
        temperature: float = 1.0,
        seed: int | None = None,
        watched: bool = True,
        stop: list[int] | None = None,
        rule: RuleSpec | None = None,
        repeats: int = 0,
    ) -> tuple[str, list[int], asyncio.Task[Generation]]:
        """Start a turn: its id, its prompt, and the task that ends with its response."""
        turn_id = turn_id or f"turn{next(_names)}"
        prompt = prompt if prompt is not None else some_prompt(turn_id)
        call = self.client.generate(
            turn_id,
            prompt,
            Sampling(
                max_tokens=max_tokens,
                cache_salt=turn_id,
                temperature=temperature,
                seed=seed,
                stop_token_ids=stop or [],
                repeats=repeats,
            ),
            watched=watched,
            rule=rule,
        )
        return turn_id, prompt, asyncio.create_task(call)


def some_prompt(seed: str, tokens: int = 40) -> list[int]:
    """A prompt of `tokens` random tokens."""
    random_tokens = random.Random(seed)
    return [random_tokens.randrange(1, VOCABULARY) for _ in range(tokens)]


@contextlib.asynccontextmanager
async def watching(endpoint: str) -> AsyncIterator[Watcher]:
    """A Watcher bound at `endpoint`, which an earlier test may have left a moment ago."""
    context = zmq.asyncio.Context()
    router = context.socket(zmq.ROUTER)
    for _ in range(100):
        with contextlib.suppress(zmq.ZMQError):
            router.bind(endpoint)
            break
        await asyncio.sleep(0.05)
    watcher = Watcher(router)
    task = asyncio.create_task(watcher.run())
    try:
        yield watcher
        if task.done():
            task.result()
    finally:
        task.cancel()
        await asyncio.wait([task])
        router.close(linger=0)
        context.term()


@pytest.fixture(
    params=["fake", pytest.param("vllm", marks=[pytest.mark.real_engine, pytest.mark.slow])]
)
async def engine(request: pytest.FixtureRequest, policies: Policies) -> AsyncIterator[Engine]:
    """An engine that runs policies.first: a test that takes it runs against the fake one and
    against vLLM."""
    pytest.importorskip("transformers")
    if request.param == "fake":
        from engine.fake.server import FakeEngine  # torch, which not every test needs

        signals = f"tcp://127.0.0.1:{free_port()}"
        fake = FakeEngine(policies.first.directory, signals=signals, top_j=TOP_J, key=KEY)
        url = await fake.start()
        stop = fake.stop
    else:
        real = request.getfixturevalue("real_engine")
        url = real.url
        signals = real.signals
        stop = None
    client = EngineClient(url, KEY)
    try:
        async with watching(signals) as watcher:
            made = Engine(request.param, url, client, watcher, policies)
            await made.run(policies.first)
            yield made
    finally:
        await client.close()
        if stop is not None:
            await stop()


TOLERANCE = 1e-4
"""Of log-probs and entropies between engine and reference, both in float32."""


@functools.cache
def model(directory: Path) -> torch.nn.Module:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def distributions(
    directory: Path, prompt: list[int], response: list[int], temperature: float = 1.0
) -> torch.Tensor:
    """Log-probs [T, V] of the policy before each token of the response, in float64 from float32
    logits."""
    import torch

    with torch.no_grad():
        logits = model(directory)(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
    return torch.log_softmax(logits.double() / temperature, -1)
