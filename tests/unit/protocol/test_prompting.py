"""Prompts are those of transformers, which is slow to import and not where actors are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from protocol.chat_format import ChatFormat, ChatOptions
from protocol.prompting import Prompter, load_prompter, read_chat_template
from tests.fixtures.chat_templates import CHATML, CLOSES, OPENS
from tests.fixtures.episodes import alfworld, tokenizer

ANSWER = "<think>I see.</think>\n<action>look</action>"


def with_template(policy: Path, directory: Path, template: object, **settings: object) -> Path:
    """A copy of the policy with another template, in its tokenizer's settings."""
    shutil.copytree(policy, directory)
    file = directory / "tokenizer_config.json"
    file.write_text(
        json.dumps(
            json.loads(file.read_text())
            | {"chat_template": template, "bos_token": "<|endoftext|>"}
            | settings
        )
    )
    return directory


def test_encode_prompt_gives_the_tokens_of_transformers(small_policy: Path, tmp_path: Path) -> None:
    """Special tokens are known by name, and arguments and a message of the system are passed on."""
    from transformers import AutoTokenizer

    template = "{{ bos_token }}{{ style }}" + CHATML + "{{ eos_token }}{{ pad_token }}"
    directory = with_template(small_policy, tmp_path / "model", template)
    message = 'Your task is to: find "it" & go\n  to {{ drawer 1 }}'
    reference = AutoTokenizer.from_pretrained(directory).apply_chat_template(
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": message}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=False,
        style="terse",
    )
    options = ChatOptions("Be brief.", {"style": "terse"})
    assert load_prompter(directory, options).encode_prompt(message) == reference


def make_prompter(template: str) -> Prompter:
    end = tokenizer().token_to_id("<|im_end|>")
    return Prompter(tokenizer().to_str().encode(), ChatFormat(template, end_tokens=[0, end]))


@pytest.mark.parametrize(
    ("template", "written"),
    [
        (CHATML, ANSWER),
        (OPENS, "I see.</think>\n<action>look</action>"),
        (CLOSES, "<action>look</action>"),
    ],
    ids=["plain", "opened", "closed"],
)
def test_read_response_parsers_see_the_whole_thought(template: str, written: str) -> None:
    """A demonstration is what a policy writes behind the prompt, and is read as valid."""
    prompter = make_prompter(template)
    (tokens,) = prompter.encode_responses([ANSWER])
    assert tokens == [*prompter.encode([written])[0], 0]
    response = prompter.read_response(tokens)
    assert alfworld().parse(response, ("look",)).valid
    if template is not CLOSES:
        assert response.replace("<think>\n", "<think>") == ANSWER


def test_read_response_of_a_thought_behind_an_empty_one_is_as_it_stands() -> None:
    """A policy may think all the same, since it is asked to."""
    prompter = make_prompter(CLOSES)
    assert prompter.read_response(prompter.encode([ANSWER])[0]) == ANSWER


def test_read_response_of_a_thought_that_is_opened_twice_is_not_valid() -> None:
    """Each tag belongs there once, wherever it was written."""
    prompter = make_prompter(OPENS)
    response = prompter.read_response(prompter.encode([ANSWER])[0])
    assert not alfworld().parse(response, ("look",)).valid


def test_encode_responses_without_a_thought_close_the_one_that_is_opened() -> None:
    prompter = make_prompter(OPENS)
    (tokens,) = prompter.encode_responses(["7"])
    assert tokens == [*prompter.encode(["</think>\n7"])[0], 0]


@pytest.mark.parametrize("plain", [False, True], ids=["one token", "several"])
def test_spell_finds_a_tag_whatever_stands_beside_it(plain: bool) -> None:
    """Where a tag is no token of its own, its first and last ones may have more than the tag."""
    content = json.loads(tokenizer().to_str())
    if plain:
        content["added_tokens"] = [
            t for t in content["added_tokens"] if "think" not in t["content"]
        ]
        merges = [["Ġ", "<"], [">", "Ċ"], ["<", "/"]]
        for left, right in merges:
            content["model"]["vocab"].setdefault(left + right, len(content["model"]["vocab"]) + 99)
        content["model"]["merges"] = [*merges, *content["model"]["merges"]]
        content["pre_tokenizer"] = {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": False,
        }
    prompter = Prompter(json.dumps(content).encode(), ChatFormat(CHATML))
    spellings = prompter.spell("</think>")
    assert plain == (len(spellings) > 1)
    for text in ("So.</think>\n<action>", " </think> ", "x\n</think>"):
        tokens = tuple(prompter.encode([text])[0])
        assert any(
            tokens[i : i + len(spelling)] == spelling
            for spelling in spellings
            for i in range(len(tokens))
        )


def test_spell_of_a_tag_that_the_tokenizer_cannot_write_is_none(small_policy: Path) -> None:
    content = json.loads((small_policy / "tokenizer.json").read_text())
    content["added_tokens"] = [t for t in content["added_tokens"] if "think" not in t["content"]]
    content["normalizer"] = {"type": "Replace", "pattern": {"String": "<"}, "content": ""}
    assert Prompter(json.dumps(content).encode(), ChatFormat(CHATML)).spell("<think>") == ()


@pytest.mark.parametrize(
    ("template", "generation", "ends"),
    [
        (None, {"eos_token_id": [2, 0]}, [2, 0]),
        (None, {"eos_token_id": 7}, [2, 7]),
        (None, {}, [2]),
        ("{{ messages[-1].content }}", {}, [0, 2]),
        ("{% for m in messages %}{{ m.content }} <|im_start|> {% endfor %}", {}, [1, 0, 2]),
    ],
    ids=["list", "number", "template's alone", "tokenizer's and model's", "another one"],
)
def test_end_tokens_are_all_that_the_models_files_name(
    small_policy: Path,
    tmp_path: Path,
    template: str | None,
    generation: dict[str, object],
    ends: list[int],
) -> None:
    """The one that the template ends a turn with comes first: demonstrations end so."""
    changes: dict[str, object] = {}
    if template is not None:
        changes = {"eos_token": "<|endoftext|>"}
    template = template or read_chat_template(small_policy)
    directory = with_template(small_policy, tmp_path / "model", template, **changes)
    (directory / "generation_config.json").write_text(json.dumps(generation))
    assert load_prompter(directory).chat.end_tokens == ends


def test_of_several_templates_the_default_one_is_taken(small_policy: Path, tmp_path: Path) -> None:
    named = [{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}]
    assert read_chat_template(with_template(small_policy, tmp_path / "model", named)) == "d"


def test_a_special_token_may_stand_there_with_its_properties(
    small_policy: Path, tmp_path: Path
) -> None:
    end = {"content": "<|im_end|>", "lstrip": False}
    template = "{{ eos_token }}{{ messages[0].content }}"
    directory = with_template(small_policy, tmp_path / "model", template, eos_token=end)
    prompter = load_prompter(directory)
    encoded = prompter.encode(["<|im_end|>x"])[0]
    assert prompter.encode_prompt("x") == encoded
    assert prompter.chat.end_tokens == encoded[:1]
