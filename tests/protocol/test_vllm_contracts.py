"""Names, signatures, fields and routes that our code takes for granted in vLLM.

These tests start nothing. They say in seconds what a new version of vLLM has changed.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import subprocess
import sys
from importlib import import_module
from types import SimpleNamespace

import msgspec
import pytest
from vllm import SamplingParams, envs, plugins
from vllm.config import SchedulerConfig
from vllm.config.parallel import ParallelConfig
from vllm.distributed.weight_transfer import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import WeightTransferEngine
from vllm.entrypoints.cli.serve import ServeSubcommand
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.entrypoints.rl.online.api_router import router as rl_router
from vllm.entrypoints.scale_out.token_in_token_out import protocol, serving
from vllm.entrypoints.scale_out.token_in_token_out.api_router import (
    router as generate_router,
)
from vllm.model_executor.layers.logits_processor import (
    LogitsProcessor as HeadProcessor,
)
from vllm.model_executor.model_loader.reload import layerwise
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.sample.logits_processor import interface as v1_interface
from vllm.v1.worker.gpu.sample.logits_processor import interface as v2_interface

from config import Devices, EngineDevice, Job
from engine import client, launch
from engine.constants import RULE_KEY, TURN_ID_KEY, engine_request_id
from engine.plugin import sharded_sampling
from engine.plugin.signal_tap import SignalTap
from engine.plugin.signal_tap_v2 import SignalTapV2
from engine.plugin.tap import stop_tokens_of
from engine.plugin.weight_transfer import SafetensorsTransfer
from tests.fixtures.jobs import make_engine_job


def parameters(function: object) -> list[str]:
    """Names of a function's parameters."""
    return list(inspect.signature(function).parameters)


def build_job(**settings: str) -> Job:
    return make_engine_job(["http://127.0.0.1:7000"], **settings)


# --- the command


def parse_as_vllm(arguments: list[str]) -> SimpleNamespace:
    """Parse the arguments of a program as that does, into its settings."""
    program, *rest = arguments
    parser = FlexibleArgumentParser()
    if program == launch.CPU_SERVE[0]:
        return make_arg_parser(parser).parse_args(rest)
    ServeSubcommand().subparser_init(parser.add_subparsers())
    parsed = parser.parse_args(rest)
    parsed.model = parsed.model_tag
    return parsed


@pytest.mark.parametrize("module", [launch.SERVE[0], launch.CPU_SERVE[0]])
def test_vllm_module_that_is_started_runs_main(module: str) -> None:
    """A module that only leads to another one would be started, and do nothing."""
    source = inspect.getsource(import_module(module))
    assert 'if __name__ == "__main__":\n    main()' in source


@pytest.mark.parametrize("cpu", [True, False], ids=["cpu", "gpu"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"control__signal": "stream"},
        {"engine__weights": "nccl"},
        {"engine__extra_args": "--tensor-parallel-size,2"},
    ],
    ids=["plain", "stream", "nccl", "two workers"],
)
def test_vllm_parses_the_command_of_an_engine(
    monkeypatch: pytest.MonkeyPatch, cpu: bool, settings: dict[str, str]
) -> None:
    monkeypatch.setattr(launch, "on_cpu", lambda: cpu)
    parsed = parse_as_vllm(launch.engine_command(build_job(**settings)).arguments)
    backend = "nccl" if "engine__weights" in settings else "foray_safetensors"
    workers = 2 if "engine__extra_args" in settings else 1
    assert (parsed.model, parsed.port, parsed.middleware) == ("policy", 7000, [launch.MIDDLEWARE])
    assert parsed.weight_transfer_config.backend == backend
    assert parsed.tensor_parallel_size == workers
    assert parsed.enable_batch_sharded_sampling == (True if workers > 1 else None)
    assert parsed.enable_chunked_prefill == (False if cpu else None)
    assert parsed.async_scheduling is None
    assert (parsed.logits_processors is None) == ("control__signal" in settings)


def test_vllm_parses_the_command_of_an_engine_that_shares_its_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Bytes of the KV cache, sleep, and the precision of the head are options of vLLM."""
    monkeypatch.setattr(launch, "on_cpu", lambda: False)
    device = EngineDevice(gpus=[0], memory_fraction=0.1, kv_cache_bytes=2**31)
    job = msgspec.structs.replace(build_job(), devices=Devices(engines=[device], sleeps=True))
    parsed = parse_as_vllm(launch.engine_command(job).arguments)
    assert (parsed.kv_cache_memory_bytes, parsed.gpu_memory_utilization) == (2**31, 0.1)
    assert parsed.enable_sleep_mode and parsed.hf_overrides == launch.FLOAT32_HEAD
    assert parsed.dtype == "bfloat16"


@pytest.mark.parametrize("word", launch.SPECULATIVE)
def test_vllm_knows_the_options_that_are_refused(word: str) -> None:
    value = "ngram" if word == "--spec-method" else "{}"
    parsed = parse_as_vllm([*launch.SERVE, "policy", word, value])
    assert parsed.speculative_config is not None or parsed.spec_method == "ngram"


@pytest.mark.parametrize("cpu", [True, False], ids=["cpu", "gpu"])
def test_vllm_reads_the_environment_variables_that_an_engine_gets(
    monkeypatch: pytest.MonkeyPatch, cpu: bool
) -> None:
    monkeypatch.setattr(launch, "on_cpu", lambda: cpu)
    monkeypatch.setenv("VLLM_PLUGINS", "another")
    monkeypatch.setenv("VLLM_API_KEY", "of another server")
    environment = launch.engine_command(build_job()).environment
    given = {name for name in environment if name.startswith("VLLM_")}
    assert given <= envs.environment_variables.keys()


def test_vllm_loads_the_group_that_our_entry_point_is_in() -> None:
    assert plugins.DEFAULT_PLUGINS_GROUP == "vllm.general_plugins"


# --- turns


def test_vllm_takes_the_request_of_a_turn_and_hands_its_settings_on() -> None:
    sampling = client.Sampling(
        max_tokens=7,
        cache_salt="salt",
        temperature=0.5,
        top_k=20,
        top_p=0.75,
        seed=3,
        stop_token_ids=[5],
        repeats=2,
        ignore_eos=True,
    )
    body = client.build_body("turn", [1, 2], sampling, log_probs=4)
    body["sampling_params"]["extra_args"] = {TURN_ID_KEY: "turn", RULE_KEY: "{}"}
    request = protocol.GenerateRequest.model_validate_json(json.dumps(body))
    params = request.sampling_params
    assert (request.request_id, request.token_ids, request.cache_salt) == ("turn", [1, 2], "salt")
    assert (params.max_tokens, params.temperature, params.seed, params.logprobs) == (7, 0.5, 3, 4)
    assert (params.top_k, params.top_p) == (20, 0.75)
    assert (params.detokenize, params.ignore_eos, params.stop_token_ids) == (False, True, [5])
    assert params.extra_args == {TURN_ID_KEY: "turn", RULE_KEY: "{}"}
    assert params.repetition_detection.min_count == 2


def test_vllm_request_names_its_stop_tokens_and_not_the_ignored_end() -> None:
    for ignored, expected in ((False, {5, 9}), (True, {5})):
        params = SamplingParams(stop_token_ids=[5], ignore_eos=ignored)
        params.update_from_generation_config({}, eos_token_id=9)
        assert stop_tokens_of(params) == expected


def test_vllm_answer_has_the_fields_that_are_read() -> None:
    read = {"token_ids", "logprobs", "finish_reason", "weight_versions"}
    for choice in (protocol.GenerateTokensChoice, protocol.GenerateTokensStreamChoice):
        assert read <= choice.model_fields.keys()
    span = protocol.WeightVersionSpan(version="7", start=0, end=3)
    assert (span.version, span.start, span.end) == ("7", 0, 3)


def test_vllm_names_the_request_of_a_turn_as_it_is_aborted() -> None:
    source = inspect.getsource(serving.ServingTokens.serve_tokens)
    assert f'f"{engine_request_id("")}' in source


def test_vllm_has_the_routes_that_are_asked_for() -> None:
    routes = {
        (method, route.path)
        for router in (rl_router, generate_router)
        for route in router.routes
        for method in route.methods
    }
    asked = {
        ("POST", client.GENERATE),
        ("POST", "/abort_requests"),
        ("POST", "/pause"),
        ("POST", "/resume"),
        ("GET", "/is_paused"),
        ("GET", "/weight_info"),
        ("POST", "/update_weight_version"),
        ("POST", "/start_weight_update"),
        ("POST", "/update_weights"),
        ("POST", "/finish_weight_update"),
        ("POST", "/init_weight_transfer_engine"),
        ("POST", "/shutdown_weight_transfer_engine"),
        ("GET", "/get_world_size"),
        ("POST", "/weight_checker"),
    }
    assert asked <= routes


# --- the plugin


@pytest.mark.parametrize(
    ("ours", "interface"),
    [
        (SignalTap, v1_interface.LogitsProcessor),
        (SignalTapV2, v2_interface.LogitsProcessor),
        (SafetensorsTransfer, WeightTransferEngine),
    ],
)
def test_our_class_implements_vllms_interface_with_its_signatures(
    ours: type, interface: type
) -> None:
    assert issubclass(ours, interface)
    assert not inspect.isabstract(ours)
    own = [
        name
        for name, member in vars(ours).items()
        if inspect.isfunction(member) and hasattr(interface, name) and name != "__init__"
    ]
    for name in own:
        assert parameters(getattr(ours, name)) == parameters(getattr(interface, name)), name


def test_v1_interface_has_what_the_tap_reads() -> None:
    assert parameters(v1_interface.LogitsProcessor.__init__)[1:] == [
        "vllm_config",
        "device",
        "is_pin_memory",
    ]
    fields = [field.name for field in dataclasses.fields(v1_interface.BatchUpdate)]
    assert fields == ["batch_size", "removed", "added", "moved"]
    assert {member.name for member in v1_interface.MoveDirectionality} == {
        "UNIDIRECTIONAL",
        "SWAP",
    }


def test_v2_interface_has_what_the_tap_reads() -> None:
    assert parameters(v2_interface.LogitsProcessor.__init__)[1:] == ["vllm_config", "req_states"]
    context = {field.name for field in dataclasses.fields(v2_interface.LogitsContext)}
    assert {"idx_mapping_np", "input_ids", "seq_lens_upper_bound_np"} <= context
    states = {field.name for field in dataclasses.fields(v2_interface.LogitsProcRequestState)}
    assert "prompt_len" in states


def test_vllm_config_has_what_the_taps_read() -> None:
    assert "enable_chunked_prefill" in SchedulerConfig.__dataclass_fields__
    fields = ParallelConfig.__dataclass_fields__
    assert {
        "enable_batch_sharded_sampling",
        "pipeline_parallel_size",
        "world_size",
    } <= fields.keys()


@pytest.mark.parametrize("name", sharded_sampling.PLAIN_HEADS)
def test_head_of_a_sharded_model_is_what_its_processor_makes_of_it(name: str) -> None:
    """So that the slice of it that `compute_logits_local` computes is a slice of the logits."""
    model_class = getattr(import_module(sharded_sampling.PLAIN_HEADS[name]), name)
    source = "".join(inspect.getsource(model_class.compute_logits).split())
    assert "logits=self.logits_processor(self.lm_head,hidden_states)returnlogits" in source
    assert "skip_gather" in parameters(HeadProcessor.forward)


def test_reload_of_layers_has_the_signatures_that_are_called() -> None:
    assert parameters(layerwise.initialize_layerwise_reload) == ["model"]
    assert parameters(layerwise.finalize_layerwise_processing) == ["model", "model_config"]


def test_factory_of_weight_transfers_takes_a_module_and_a_class() -> None:
    assert parameters(WeightTransferEngineFactory.register_engine)[:3] == [
        "name",
        "module_path_or_cls",
        "class_name",
    ]


def test_shadow_protection_reaches_what_vllm_spawns() -> None:
    """Python hands -P on to the processes that it spawns, as our commands are started with it."""
    program = "from multiprocessing import util; print(util._args_from_interpreter_flags())"
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True
    )
    assert "-P" in done.stdout
