"""Updates of weights when the engine answers late, twice or not at all.

Here is also what `verify` can tell apart.
"""

from __future__ import annotations

import asyncio
import hashlib
from math import isnan
from pathlib import Path
from typing import ClassVar

import msgspec
import pytest
from aiohttp import web

torch = pytest.importorskip("torch")

from safetensors.torch import save_file  # noqa: E402

from engine.client import EngineClient, EngineError, EngineUnreachable  # noqa: E402
from engine.plugin.verify_weights import compare_with_file  # noqa: E402
from engine.plugin.weight_file import check_file, check_tensors, tensor_shapes  # noqa: E402
from engine.pool import EnginePool  # noqa: E402
from engine.responses import read_generation  # noqa: E402
from engine.weight_update import update_engine, update_engine_nccl  # noqa: E402
from protocol.messages import Span, Transfer  # noqa: E402
from supervisor.endpoints import free_port  # noqa: E402


class Stub:
    """An engine of routes only, which counts calls.

    It loses the connection where it is told to, after doing what was asked.
    """

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.version = "default"
        self.paused = False
        self.workers = 1
        self.lose: set[str] = set()
        self.hang: set[str] = set()
        self.refuse: set[str] = set()

    async def __aenter__(self) -> EngineClient:
        app = web.Application()
        app.router.add_route("*", "/{name}", self._answer)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self._client = EngineClient(f"http://127.0.0.1:{self._runner.addresses[0][1]}")
        return self._client

    async def __aexit__(self, *error: object) -> None:
        await self._client.close()
        await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        self.calls.append(name)
        if name in ("pause", "resume"):
            self.paused = name == "pause"
        if name == "finish_weight_update":
            self.version = (await request.json())["weight_version"]
        if name in self.refuse:
            return web.json_response({"error": {"message": f"no {name} today"}}, status=500)
        if name in self.hang:
            await asyncio.sleep(60)
        if name in self.lose:
            self.lose.discard(name)
            request.transport.abort()
            return web.Response()
        return web.json_response(
            {"weight_version": self.version, "is_paused": self.paused, "world_size": self.workers}
        )


async def test_an_update_is_pause_start_update_finish_resume() -> None:
    stub = Stub()
    async with stub as client:
        seconds = await update_engine(client, "file", 3, "sum", deadline=5.0)
    assert seconds > 0
    assert stub.calls == [
        "weight_info",
        "pause",
        "start_weight_update",
        "update_weights",
        "finish_weight_update",
        "resume",
        "weight_info",
    ]


async def test_an_update_whose_answer_was_lost_is_not_done_twice() -> None:
    stub = Stub()
    stub.lose = {"finish_weight_update"}
    async with stub as client:
        assert await update_engine(client, "file", 3, "sum", deadline=5.0) == 0.0
    assert stub.calls.count("update_weights") == 1
    assert not stub.paused


@pytest.mark.parametrize(
    "lost", ["pause", "start_weight_update", "update_weights", "resume", "weight_info"]
)
async def test_an_update_is_tried_again_after_a_lost_connection(lost: str) -> None:
    stub = Stub()
    stub.lose = {lost}
    async with stub as client:
        await update_engine(client, "file", 3, "sum", deadline=5.0)
    assert stub.version == "3"
    assert not stub.paused


async def test_an_update_that_takes_too_long_names_the_setting_and_resumes() -> None:
    stub = Stub()
    stub.hang = {"update_weights"}
    async with stub as client:
        with pytest.raises(EngineError, match=r"version 3 .*engine\.update_seconds"):
            await update_engine(client, "file", 3, "sum", deadline=0.5)
    assert not stub.paused


SENT = Transfer(["w"], ["float32"], [[2, 3]])


async def test_weights_sent_once_are_not_asked_for_again_when_the_answer_is_lost() -> None:
    """Weights that are sent once are not asked for again when their answer is lost."""
    stub = Stub()
    stub.lose = {"update_weights"}
    async with stub as client:
        with pytest.raises(EngineError, match="sent once"):
            await update_engine_nccl(client, SENT, 3, deadline=5.0)
    assert stub.calls.count("update_weights") == 1


@pytest.mark.parametrize(
    "lost", ["pause", "start_weight_update", "finish_weight_update", "resume", "weight_info"]
)
async def test_what_stands_around_sent_weights_is_tried_again_after_a_lost_connection(
    lost: str,
) -> None:
    stub = Stub()
    stub.lose = {lost}
    async with stub as client:
        await update_engine_nccl(client, SENT, 3, deadline=5.0)
    assert (stub.version, stub.paused, stub.calls.count("update_weights")) == ("3", False, 1)


async def test_update_fails_at_once_when_one_engine_fails_while_weights_are_sent() -> None:
    """An update fails at once when one engine does; none generates with half of the weights."""
    failing = Stub()
    waiting = Stub()
    failing.refuse = {"update_weights"}
    waiting.hang = {"update_weights"}
    async with failing as one, waiting as other:
        pool = EnginePool([one.url, other.url])
        with pytest.raises(EngineError, match="no update_weights today"):
            await asyncio.wait_for(pool.receive_weights(SENT, 3, deadline=60.0), 10.0)
        await pool.close()
    assert failing.paused and "resume" not in failing.calls + waiting.calls


async def test_engines_that_do_not_meet_the_learner_in_time_name_the_place_and_the_setting() -> (
    None
):
    stub = Stub()
    stub.hang = {"init_weight_transfer_engine"}
    async with stub as client:
        pool = EnginePool([client.url])
        with pytest.raises(EngineError, match=r"tcp://127\.0\.0\.1:9 .*engine\.update_seconds"):
            await pool.init_nccl_group("tcp://127.0.0.1:9", deadline=0.5)
        await pool.close()


async def test_an_engine_of_several_workers_is_refused_before_any_waits_for_the_learner() -> None:
    single = Stub()
    double = Stub()
    double.workers = 2
    async with single as one, double as other:
        pool = EnginePool([one.url, other.url])
        with pytest.raises(EngineError, match=rf"engine\.weights: .*{other.url} has 2"):
            await pool.init_nccl_group("tcp://127.0.0.1:9", deadline=5.0)
        await pool.close()
    assert "init_weight_transfer_engine" not in single.calls + double.calls


async def test_an_engine_that_is_not_there_is_an_error_with_its_address() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    client = EngineClient(url)
    try:
        with pytest.raises(EngineUnreachable, match=url):
            await client.weight_version()
        assert not await client.health()
    finally:
        await client.close()


# --- answers


def answer(**choice: object) -> bytes:
    return msgspec.json.encode(
        {"choices": [{"token_ids": [4, 5], "finish_reason": "stop", **choice}]}
    )


def test_a_log_prob_that_the_engine_does_not_have_is_nan() -> None:
    generation = read_generation(
        answer(logprobs={"content": [{"logprob": -0.5}, {"logprob": -9999.0}]})
    )
    assert generation.log_probs[0] == -0.5
    assert isnan(generation.log_probs[1])


def test_spans_are_numbers_and_vllms_first_label_is_minus_one() -> None:
    logprobs = {"content": [{"logprob": -0.5}, {"logprob": -0.5}]}
    versions = [
        {"version": "default", "start": 0, "end": 1},
        {"version": "7", "start": 1, "end": 2},
    ]
    assert read_generation(answer(logprobs=logprobs, weight_versions=versions)).spans == [
        Span(0, 1, -1),
        Span(1, 2, 7),
    ]


def test_an_answer_with_missing_log_probs_is_refused() -> None:
    with pytest.raises(ValueError, match="2 tokens with 1 log-probs"):
        read_generation(answer(logprobs={"content": [{"logprob": -0.5}]}))


# --- files


def test_a_file_with_another_checksum_is_refused_naming_both(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    file.write_bytes(b"weights")
    with pytest.raises(
        ValueError, match=f"{hashlib.sha256(b'weights').hexdigest()}.*announced was 00"
    ):
        check_file(file, "00")


def test_tensors_must_be_those_of_the_model(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2, 3)}, tmp_path / "model.safetensors")
    expected = tensor_shapes(tmp_path)
    check_tensors(tmp_path / "model.safetensors", expected)
    for other in (
        {"a": torch.zeros(3, 2)},
        {"a": torch.zeros(2, 3), "b": torch.zeros(1)},
        {"b": torch.zeros(2, 3)},
    ):
        save_file(other, tmp_path / "other.bin")
        with pytest.raises(ValueError, match="another model"):
            check_tensors(tmp_path / "other.bin", expected)


def test_a_tied_head_in_the_models_files_is_not_expected_to_be_published(tmp_path: Path) -> None:
    save_file(
        {"lm_head.weight": torch.zeros(2, 3), "a": torch.zeros(1)}, tmp_path / "model.safetensors"
    )
    assert set(tensor_shapes(tmp_path)) == {"lm_head.weight", "a"}
    (tmp_path / "config.json").write_text('{"tie_word_embeddings": true}')
    assert set(tensor_shapes(tmp_path)) == {"a"}


class Packed(torch.nn.Module):
    """A linear layer as vLLM keeps it on a CPU.

    It has an empty parameter, and a function that has the weight.
    """

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(0))
        self.cpu_linear = lambda x, _weight, _bias: x @ weight.T


class Served(torch.nn.Module):
    """A model as vLLM holds it: an embedding as it is, q and k stacked into one packed layer."""

    packed_modules_mapping: ClassVar = {"qk_proj": ["q_proj", "k_proj"]}

    def __init__(self, file: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding.from_pretrained(file["embed.weight"])
        self.qk_proj = Packed(torch.cat([file["q_proj.weight"], file["k_proj.weight"]]))


@pytest.fixture
def file() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "embed.weight": torch.randn(7, 8),
        "q_proj.weight": torch.randn(8, 8),
        "k_proj.weight": torch.randn(4, 8),
    }


def rooted(file: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"model.{name}": tensor for name, tensor in file.items()}


def served(file: dict[str, torch.Tensor]) -> torch.nn.Module:
    outer = torch.nn.Module()
    outer.packed_modules_mapping = Served.packed_modules_mapping
    outer.model = Served(file)
    return outer


def test_a_model_that_holds_the_file_passes(file: dict[str, torch.Tensor], tmp_path: Path) -> None:
    save_file(rooted(file), tmp_path / "w")
    assert compare_with_file(served(file), tmp_path / "w") == 2


@pytest.mark.parametrize("changed", ["embed.weight", "q_proj.weight", "k_proj.weight"])
def test_one_changed_weight_is_found(
    file: dict[str, torch.Tensor], tmp_path: Path, changed: str
) -> None:
    save_file(rooted(file), tmp_path / "w")
    other = dict(file)
    other[changed] = file[changed].clone()
    other[changed][1, 2] += 0.05
    with pytest.raises(ValueError, match="does not hold the weights of the file"):
        compare_with_file(served(other), tmp_path / "w")


def test_a_comparison_that_compares_nothing_is_an_error(
    file: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    save_file(file, tmp_path / "w")
    with pytest.raises(ValueError, match="none of the weights"):
        compare_with_file(torch.nn.Module(), tmp_path / "w")
