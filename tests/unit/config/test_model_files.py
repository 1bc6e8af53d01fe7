"""What follows from a model's files: its budget of tokens, before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from config.model_files import (
    THINKING_MAX_MODEL_LEN,
    THINKING_MAX_TOKENS,
    read_model_files,
    settings_of_model,
)
from config.resolve import resolve, to_toml
from tests.fixtures.chat_templates import HYBRID


def write_model(directory: Path, longest: int, template: str) -> str:
    """Write the small files of a model that was made for texts of `longest` tokens."""
    (directory / "config.json").write_text(json.dumps({"max_position_embeddings": longest}))
    (directory / "chat_template.jinja").write_text(template)
    return str(directory)


@pytest.mark.parametrize("name", ["qwen/qwen3-4b", "Qwen/Qwen3-4B@main"])
def test_read_model_files_spelling_and_revision_do_not_matter(name: str) -> None:
    """The hub finds such names, too."""
    assert read_model_files(name) == read_model_files("Qwen/Qwen3-4B")


def test_read_model_files_of_another_model_are_none() -> None:
    """What is not at hand is not made up."""
    assert read_model_files("somebody/something") is None


def test_read_model_files_of_a_directory_are_its_own(tmp_path: Path) -> None:
    """They are read where the name leads, or in the directory that is given beside it."""
    name = write_model(tmp_path, 9000, "{{ messages }}")
    files = read_model_files(name)
    assert files is not None and files.figures == {"max_position_embeddings": 9000}
    assert read_model_files("Qwen/Qwen3-4B", tmp_path) == files


def test_settings_of_model_that_thinks_have_longer_responses(tmp_path: Path) -> None:
    """A model that thinks of itself needs hundreds of tokens before it acts."""
    name = write_model(tmp_path, 40960, "{{ messages }}<think>")
    settings = settings_of_model(name)
    assert settings == settings_of_model("Qwen/Qwen3-4B")
    assert settings == {
        "sampling.max_tokens": THINKING_MAX_TOKENS,
        "engine.max_model_len": THINKING_MAX_MODEL_LEN,
    }


def test_settings_of_model_that_is_told_not_to_think_are_the_plain_ones(tmp_path: Path) -> None:
    """By an argument of its template, in a file or on the command line."""
    overrides = {"model": write_model(tmp_path, 40960, HYBRID)}
    assert resolve(overrides=overrides).sampling.max_tokens == THINKING_MAX_TOKENS
    overrides["model.template_arguments.enable_thinking"] = "false"
    config = resolve(overrides=overrides)
    assert config.model.template_arguments == {"enable_thinking": False}
    assert config.sampling.max_tokens == 512
    file = tmp_path / "config.toml"
    file.write_text(to_toml(config))
    assert resolve(file) == config


def test_settings_of_model_that_does_not_think_are_the_plain_ones(tmp_path: Path) -> None:
    """At least 512 tokens of response, in 4,096."""
    assert settings_of_model("Qwen/Qwen3-4B-Instruct-2507") == {}
    config = resolve(overrides={"model": write_model(tmp_path, 40960, "{{ messages }}")})
    assert (config.sampling.max_tokens, config.engine.max_model_len) == (512, 4096)
    assert config.run.max_minutes == 0.0


def test_settings_of_model_keep_to_what_it_was_made_for(tmp_path: Path) -> None:
    """No more tokens than its positions, half of them for the response at most."""
    name = write_model(tmp_path, 800, "{{ messages }}<think>")
    assert settings_of_model(name) == {"sampling.max_tokens": 400, "engine.max_model_len": 800}


def test_resolve_model_that_thinks_gives_way_to_what_is_set() -> None:
    """The budget of the model is a default: recipes and options win over it."""
    overrides = {"model": "Qwen/Qwen3-4B", "recipe": "alfworld"}
    assert resolve(overrides=overrides).sampling.max_tokens == 500
    overrides = {"model": "Qwen/Qwen3-4B", "sampling.max_tokens": "900"}
    config = resolve(overrides=overrides)
    assert config.sampling.max_tokens == 900
    assert config.engine.max_model_len == THINKING_MAX_MODEL_LEN


def test_settings_of_model_without_readable_files_are_the_plain_ones(tmp_path: Path) -> None:
    """Another check says what is wrong with them."""
    (tmp_path / "config.json").write_text("no JSON")
    assert settings_of_model(str(tmp_path)) == {}
    assert settings_of_model("tiny") == {}
