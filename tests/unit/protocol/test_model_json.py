"""A model's files with null where a table, a number or a text is expected."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from config.model_files import longest_text, read_model_files
from protocol.model_json import read_model_json, text_config
from protocol.prompting import load_prompter, read_chat_template, read_vocabulary
from supervisor.cluster.model_shape import UnknownShape, read_shape
from tests.fixtures.episodes import tokenizer


def write_json(directory: Path, name: str, content: object) -> Path:
    file = directory / name
    file.write_text(json.dumps(content))
    return file


def test_read_model_json_leaves_out_what_is_null(tmp_path: Path) -> None:
    """In tables inside the table, too."""
    content = {"a": None, "b": 0, "c": {"d": None, "e": [None]}}
    assert read_model_json(write_json(tmp_path, "a.json", content)) == {"b": 0, "c": {"e": [None]}}


@pytest.mark.parametrize("text", ["null", "[]", '"a"', "{", ""])
def test_read_model_json_of_no_table_names_the_file(tmp_path: Path, text: str) -> None:
    """What is no JSON is none, either."""
    file = tmp_path / "config.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"^model\.name: .*config\.json"):
        read_model_json(file)


@pytest.mark.parametrize("text", [None, "absent", []])
def test_text_config_that_is_no_table_leaves_the_outer_one(text: object) -> None:
    """Figures stand beside it then."""
    config = {"text_config": text, "vocab_size": 7}
    assert text_config(config) == config
    assert text_config({"text_config": {"vocab_size": 8}, "vocab_size": 7}) == {"vocab_size": 8}


def test_figures_of_a_config_with_nulls_are_read_without_them(tmp_path: Path) -> None:
    """Its vocabulary, its longest text and its shape are those that stand beside them."""
    config = {"text_config": None, "vocab_size": 7, "max_position_embeddings": 90}
    write_json(tmp_path, "config.json", config | {"model_type": None})
    files = read_model_files(str(tmp_path))
    assert files is not None and longest_text(files) == 90 and read_vocabulary(tmp_path) == 7
    with pytest.raises(UnknownShape, match="num_attention_heads"):
        read_shape(files.figures)
    write_json(tmp_path, "config.json", {"text_config": {"vocab_size": None}})
    with pytest.raises(ValueError, match=r"config\.json has no vocab_size"):
        read_vocabulary(tmp_path)


@pytest.mark.parametrize("token", [None, {}, {"content": None}])
def test_tokenizer_settings_with_nulls_lack_what_is_null(tmp_path: Path, token: object) -> None:
    """A template that is null is none, and so is a token whose text is."""
    write_json(tmp_path, "tokenizer_config.json", {"eos_token": token, "chat_template": None})
    with pytest.raises(ValueError, match="no chat template"):
        read_chat_template(tmp_path)
    template = "{{ messages[0].content }}{{ eos_token }}"
    (tmp_path / "chat_template.jinja").write_text(template)
    assert read_chat_template(tmp_path) == template
    tokenizer().save(str(tmp_path / "tokenizer.json"))
    write_json(tmp_path, "generation_config.json", {"eos_token_id": None})
    with pytest.raises(ValueError, match=r"names no token that ends a turn: eos_token in"):
        load_prompter(tmp_path)
