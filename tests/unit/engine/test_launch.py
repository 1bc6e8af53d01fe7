"""How an engine is started, and what is said when it cannot be."""

from __future__ import annotations

import asyncio
import json
import os
from importlib.metadata import entry_points
from pathlib import Path

import msgspec
import pytest
import torch
from aiohttp import web

from config import ConfigError, Devices, EngineDevice, Job
from config.resolve import resolve
from engine import launch as server
from engine.constants import GATED_HEADER, MIDDLEWARE, PLUGIN
from engine.launch import (
    EngineNotReady,
    check_engine,
    check_memory,
    cpu_dtype,
    engine_command,
    wait_ready,
    weights_gib,
)
from protocol import machine
from supervisor.endpoints import free_port
from tests.fixtures import ROOT
from tests.fixtures.jobs import make_engine_job
from tests.fixtures.servers import serve_app, silent_server


def job(engines: int = 1, **settings: str) -> Job:
    addresses = [f"http://127.0.0.1:{7000 + 2 * number}" for number in range(engines)]
    return make_engine_job(addresses, "tcp://127.0.0.1:7001", **settings)


def value(arguments: list[str], option: str) -> str:
    return arguments[arguments.index(option) + 1]


@pytest.fixture(params=[True, False], ids=["cpu", "gpu"])
def on_cpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(server, "on_cpu", lambda: request.param)
    return request.param


def test_the_engine_serves_the_policy_of_the_job_on_this_machine_only(on_cpu: bool) -> None:
    arguments = engine_command(job()).arguments
    assert arguments[0].startswith("vllm.entrypoints.")
    assert value(arguments, "--model" if on_cpu else "serve") == "policy"
    assert (value(arguments, "--host"), value(arguments, "--port")) == ("127.0.0.1", "7000")


def test_a_model_is_served_by_a_command_that_the_installed_vllm_has(on_cpu: bool) -> None:
    """The command `vllm serve` looks for a package called vllm, which that for CPUs is not."""
    words = server.serve_command("model")
    assert "model" in words and (words[:2] == ["vllm", "serve"]) is not on_cpu
    if on_cpu:
        assert words[:3] == ["python", "-m", *server.CPU_SERVE]
        assert words[-1] == "--gpu-memory-utilization=0.3"


def test_log_probs_are_asked_for_after_temperature(on_cpu: bool) -> None:
    assert value(engine_command(job()).arguments, "--logprobs-mode") == "processed_logprobs"


def test_our_plugin_is_told_to_vllm(on_cpu: bool) -> None:
    command = engine_command(job(control__t2po__top_j="13"))
    assert json.loads(value(command.arguments, "--weight-transfer-config")) == {
        "backend": "foray_safetensors"
    }
    tap = "engine.plugin.signal_tap_v2:SignalTapV2"
    if on_cpu:
        tap = "engine.plugin.signal_tap:SignalTap"
    assert value(command.arguments, "--logits-processors") == tap
    assert command.environment["VLLM_USE_V2_MODEL_RUNNER"] == ("0" if on_cpu else "1")
    assert command.environment["FORAY_TAP_ENDPOINT"] == "tcp://127.0.0.1:7001"
    assert command.environment["FORAY_TAP_TOP_J"] == "13"
    assert command.environment["VLLM_SERVER_DEV_MODE"] == "1"


@pytest.mark.parametrize(
    ("given", "plugins"),
    [("", "foray"), ("other", "other,foray"), ("foray,other", "other,foray"), (None, None)],
)
def test_engine_gets_our_plugin_and_key_whatever_the_environment_sets(
    on_cpu: bool, monkeypatch: pytest.MonkeyPatch, given: str | None, plugins: str | None
) -> None:
    """Settings that the user has for other servers do not keep our plugin or our key out."""
    monkeypatch.setenv("VLLM_API_KEY", "of another server")
    if given is None:
        monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    else:
        monkeypatch.setenv("VLLM_PLUGINS", given)
    environment = engine_command(job()).environment
    assert environment["VLLM_API_KEY"] == "" and environment.get("VLLM_PLUGINS") == plugins
    assert PLUGIN in {entry.name for entry in entry_points(group="vllm.general_plugins")}


@pytest.mark.parametrize(("runner", "tap"), [("0", "SignalTap"), ("1", "SignalTapV2")])
def test_engine_command_has_the_tap_of_the_runner_that_the_user_sets(
    on_cpu: bool, monkeypatch: pytest.MonkeyPatch, runner: str, tap: str
) -> None:
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", runner)
    command = engine_command(job())
    assert value(command.arguments, "--logits-processors").endswith(f":{tap}")
    assert command.environment["VLLM_USE_V2_MODEL_RUNNER"] == runner


@pytest.mark.parametrize(
    ("extra_args", "workers"),
    [
        ([], 1),
        (["--tensor-parallel-size", "2"], 2),
        (["--tensor_parallel_size=4"], 4),
        (["--max-num-seqs", "8", "-tp", "2"], 2),
        (["-tp", "2", "-tp=8"], 8),
        (["--tensor-parallel-size"], 1),
    ],
)
def test_worker_count_is_what_vllm_reads_in_the_arguments(
    extra_args: list[str], workers: int
) -> None:
    assert server.worker_count(extra_args) == workers


@pytest.mark.parametrize(("extra_args", "expected"), [("", "0"), ("-tp,2", None)])
def test_single_worker_on_a_cpu_is_in_the_process_of_the_scheduler(
    monkeypatch: pytest.MonkeyPatch, extra_args: str, expected: str | None
) -> None:
    monkeypatch.setattr(server, "on_cpu", lambda: True)
    settings = {"engine__extra_args": extra_args} if extra_args else {}
    environment = engine_command(job(**settings)).environment
    assert environment.get("VLLM_ENABLE_V1_MULTIPROCESSING") == expected


def test_engine_of_several_workers_samples_each_request_in_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "on_cpu", lambda: False)
    single = engine_command(job())
    double = engine_command(job(engine__extra_args="--tensor-parallel-size,2"))
    assert "--enable-batch-sharded-sampling" in double.arguments
    assert double.environment["FORAY_SHARDED_SAMPLING"] == "1"
    assert "--enable-batch-sharded-sampling" not in single.arguments
    assert "FORAY_SHARDED_SAMPLING" not in single.environment


@pytest.mark.parametrize(
    ("extra_args", "said"),
    [
        ("--speculative-config,{}", "engine.extra_args: speculative decoding samples several"),
        ("--speculative-config.method,ngram", "engine.extra_args: speculative decoding samples"),
        ("--speculative_config={}", "engine.extra_args: speculative decoding samples several"),
        ("-tp,2", "engine.extra_args: with tensor parallelism the signal tap needs"),
    ],
)
def test_arguments_that_leave_no_place_for_the_tap_are_refused_with_the_reason(
    on_cpu: bool, monkeypatch: pytest.MonkeyPatch, extra_args: str, said: str
) -> None:
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "0")
    settings = {"engine.extra_args": extra_args}
    with pytest.raises(ConfigError, match=said):
        server.check_extra_args(resolve(None, settings))
    server.check_extra_args(resolve(None, settings | {"control.signal": "stream"}))


def test_weights_over_nccl_are_vllms_own_transfer(on_cpu: bool) -> None:
    command = engine_command(job(engine__weights="nccl"))
    assert json.loads(value(command.arguments, "--weight-transfer-config")) == {"backend": "nccl"}


@pytest.mark.parametrize(
    ("cpu_vllm", "cuda"), [(True, True), (False, False)], ids=["vLLM for CPUs", "no GPU"]
)
def test_weights_over_nccl_are_refused_without_gpus(
    monkeypatch: pytest.MonkeyPatch, cpu_vllm: bool, cuda: bool
) -> None:
    monkeypatch.setattr(server, "on_cpu", lambda: cpu_vllm)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    for settings in (
        {"engine.urls": "http://127.0.0.1:1"},
        {"engine.devices": "1", "learner.devices": "0"},
    ):
        with pytest.raises(
            ConfigError, match=r"engine\.weights: nccl needs NVIDIA GPUs.*leave it at file"
        ):
            check_engine(resolve(None, settings | {"engine.weights": "nccl"}), None)


def test_check_engine_without_a_server_at_its_address_names_engine_urls() -> None:
    """An address at which nothing listens is told before anything starts, not after 180 s."""
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(ConfigError, match=rf"engine\.urls: nothing answers at {url} .*refused"):
        check_engine(resolve(None, {"engine.urls": url}), None)


def test_check_engine_with_a_listening_server_leaves_the_rest_to_the_start() -> None:
    """A server that listens is one that may still be loading."""
    with silent_server() as url:
        check_engine(resolve(None, {"engine.urls": url}), None)


def test_check_nccl_with_gpus_and_vllm_for_them_is_content(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who has which GPU is checked where they are placed (supervisor/cluster/plan.py)."""
    monkeypatch.setattr(server, "on_cpu", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    server.check_nccl(resolve(None, {"engine.weights": "nccl"}))


def gpu_arguments(monkeypatch: pytest.MonkeyPatch, devices: Devices, **settings: str) -> list[str]:
    """Arguments of the first engine of a job with these devices, where vLLM is for GPUs."""
    monkeypatch.setattr(server, "on_cpu", lambda: False)
    planned = msgspec.structs.replace(job(**settings), devices=devices)
    return engine_command(planned).arguments


def test_engine_command_gpu_of_its_own_gives_a_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM sizes the KV cache by itself, and no process sleeps."""
    device = EngineDevice(gpus=[3], memory_fraction=0.85)
    arguments = gpu_arguments(monkeypatch, Devices(engines=[device]))
    assert value(arguments, "--gpu-memory-utilization") == "0.85"
    assert "--kv-cache-memory-bytes" not in arguments and "--enable-sleep-mode" not in arguments


def test_engine_command_shared_gpu_gives_bytes_and_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the learner the KV cache has the size that was planned."""
    device = EngineDevice(gpus=[0], memory_fraction=0.1, kv_cache_bytes=2**31)
    devices = Devices(engines=[device], learner=[0], sequences=93, sleeps=True)
    arguments = gpu_arguments(monkeypatch, devices, engine__max_sequences="0")
    assert value(arguments, "--kv-cache-memory-bytes") == str(2**31)
    assert value(arguments, "--max-num-seqs") == "93"
    assert "--enable-sleep-mode" in arguments


def test_engine_command_gpu_computes_logits_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """The head's precision is the learner's, and weights are bfloat16 unless another is asked."""
    arguments = gpu_arguments(monkeypatch, Devices())
    assert json.loads(value(arguments, "--hf-overrides")) == {"head_dtype": "float32"}
    assert value(arguments, "--dtype") == "bfloat16"
    arguments = gpu_arguments(monkeypatch, Devices(), engine__dtype="float32")
    assert value(arguments, "--dtype") == "float32"


def test_the_tap_is_left_out_where_signals_come_from_streams(on_cpu: bool) -> None:
    command = engine_command(job(control__signal="stream"))
    assert (
        "--logits-processors" not in command.arguments
        and "FORAY_TAP_ENDPOINT" not in command.environment
    )


def test_engines_draw_the_same_random_numbers_in_runs_of_the_same_seed_alone(
    on_cpu: bool,
) -> None:
    """Engines draw their own random numbers, and the same ones in a run of the same seed."""
    runs = [job(engines=2, run__seed=seed) for seed in ("0", "1", "0")]
    first, second, again = (
        [value(engine_command(run, number).arguments, "--seed") for number in (0, 1)]
        for run in runs
    )
    assert len({*first, *second}) == 4 and again == first


def test_further_arguments_of_the_user_come_last(on_cpu: bool) -> None:
    assert engine_command(job(engine__extra_args="--seed,7")).arguments[-2:] == ["--seed", "7"]


def test_a_step_holds_the_longest_prompt_where_prefills_are_not_chunked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "on_cpu", lambda: True)
    for length in (1024, 9000):
        arguments = engine_command(job(engine__max_model_len=str(length))).arguments
        assert int(value(arguments, "--max-num-batched-tokens")) >= length


@pytest.mark.parametrize(("threads", "expected"), [("2", "2"), ("0", None)])
def test_the_worker_computes_on_as_many_cores_as_configured(
    monkeypatch: pytest.MonkeyPatch, threads: str, expected: str | None
) -> None:
    monkeypatch.setattr(server, "on_cpu", lambda: True)
    assert (
        engine_command(job(engine__threads=threads)).environment.get("OMP_NUM_THREADS") == expected
    )


def test_a_quota_of_cores_bounds_what_vllm_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "on_cpu", lambda: True)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr(machine, "quota_cores", lambda: 2.5)
    assert engine_command(job(engine__threads="0")).environment["OMP_NUM_THREADS"] == "3"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [("avx2 avx512_bf16", "bfloat16"), ("amx_bf16", "bfloat16"), ("avx2 fma", "float32")],
)
def test_auto_is_the_precision_that_the_cpu_computes_with(
    tmp_path: Path, flags: str, expected: str
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor : 0\nflags : {flags}\n")
    assert cpu_dtype("auto", cpuinfo) == expected
    assert cpu_dtype("bfloat16", cpuinfo) == "bfloat16"


def test_too_little_memory_names_the_setting() -> None:
    with pytest.raises(ConfigError, match=r"engine\.kv_cache_gb.*4\.5 GiB.*3\.0 GiB are available"):
        check_memory(kv_cache_gib=2.0, weights=0.5, available=3.0)
    check_memory(kv_cache_gib=2.0, weights=0.5, available=4.6)


def test_weights_are_the_safetensors_files(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(bytes(2**20))
    (tmp_path / "b.bin").write_bytes(bytes(2**20))
    assert weights_gib(tmp_path) == pytest.approx(1 / 1024)
    assert weights_gib(None) == 0.0


@pytest.mark.slow
async def test_an_engine_that_never_answers_names_the_setting() -> None:
    with pytest.raises(EngineNotReady, match=r"engine\.start_seconds") as refused:
        await wait_ready(f"http://127.0.0.1:{free_port()}", 0.5)
    assert refused.value.option == "--engine.start_seconds 600"


def make_app(*, gated: bool = True, **answers: int) -> web.Application:
    """Make a server that answers each route with the given status.

    It is as behind our middleware if `gated`.
    """
    app = web.Application()
    for name, status in answers.items():
        method, path = {
            "health": ("GET", "/health"),
            "weights": ("GET", "/weight_info"),
            "generate": ("POST", "/inference/v1/generate"),
        }[name]

        async def answer(request: web.Request, status: int = status) -> web.Response:
            headers = {GATED_HEADER: "1"} if gated else {}
            body = {"error": {"message": "disabled"}}
            return web.json_response(body, status=status, headers=headers)

        app.router.add_route(method, path, answer)
    return app


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ({"health": 200, "weights": 404}, "VLLM_SERVER_DEV_MODE"),
        ({"health": 200, "weights": 200, "generate": 403}, "--enable-scale-out"),
        ({"health": 200, "weights": 401}, "FORAY_ENGINE_KEY"),
        ({"health": 200, "weights": 200, "generate": 401}, "FORAY_ENGINE_KEY"),
        ({"health": 200, "weights": 200, "generate": 500}, "^the engine at .* first token"),
    ],
)
async def test_a_server_that_is_not_for_us_is_told_apart_from_one_that_is_not_ready(
    answers: dict[str, int], said: str
) -> None:
    async with serve_app(make_app(**answers)) as url:
        with pytest.raises(EngineNotReady, match=said):
            await wait_ready(url, 5.0)


async def test_an_engine_without_our_middleware_is_refused_with_the_flag_to_start_it_with() -> None:
    app = make_app(gated=False, health=200, weights=200, generate=200)
    async with serve_app(app) as url:
        message = rf"engine\.urls: {url} .*--middleware {MIDDLEWARE}"
        with pytest.raises(EngineNotReady, match=message):
            await wait_ready(url, 5.0)
    guide = ROOT / "docs" / "reference" / "engine.md"
    assert f"--middleware {MIDDLEWARE}" in guide.read_text()


async def test_a_ready_engine_is_waited_for_until_it_generates() -> None:
    async with serve_app(make_app(health=200, weights=200, generate=200)) as url:
        await asyncio.wait_for(wait_ready(url, 5.0), 5.0)
