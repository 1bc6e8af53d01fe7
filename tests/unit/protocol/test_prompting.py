"""Prompts are those of transformers, which is slow to import and not where actors are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from protocol.prompting import load_prompter, read_chat_template, read_turn_end

TEMPLATES = {
    "begins with its token": (
        "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] | trim }}{{ "
        "eos_token }}{% endfor %}"
    ),
    "asks for an answer": (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if "
        "add_generation_prompt %}A:{% endif %}"
    ),
    "thinks unless told not to": (
        "{%- for m in messages %}\n{{- '<|im_start|>' + m.role + '\\n' + m.content + "
        "'<|im_end|>\\n' }}\n{%- endfor %}\n"
        "{%- if add_generation_prompt %}\n{{- '<|im_start|>assistant\\n' }}\n"
        "{%- if enable_thinking is defined and not enable_thinking %}{{- '<think></think>' }}{%- "
        "endif %}\n{%- endif %}"
    ),
    "knows the date if it may": (
        "{% if strftime_now is defined and false %}{{ strftime_now('%Y') }}{% endif %}"
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}{{ "
        "messages[-1]['content'] }}{{ eos_token }}"
    ),
}


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


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_a_prompt_has_the_tokens_that_transformers_gives_it(
    small_policy: Path, tmp_path: Path, template: str
) -> None:
    from transformers import AutoTokenizer

    directory = with_template(small_policy, tmp_path / "model", template)
    message = 'Your task is to: find "it" & go\n  to {{ drawer 1 }}'
    reference = AutoTokenizer.from_pretrained(directory).apply_chat_template(
        [{"role": "user", "content": message}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=False,
    )
    assert load_prompter(directory).encode_prompt(message) == reference


def test_of_several_templates_the_default_one_is_taken(small_policy: Path, tmp_path: Path) -> None:
    named = [{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}]
    assert read_chat_template(with_template(small_policy, tmp_path / "model", named)) == "d"


def test_a_special_token_may_stand_there_with_its_properties(
    small_policy: Path, tmp_path: Path
) -> None:
    end = {"content": "<|im_end|>", "lstrip": False}
    directory = with_template(small_policy, tmp_path / "model", "{{ eos_token }}", eos_token=end)
    assert (
        read_turn_end(directory) == "<|im_end|>"
        and load_prompter(directory).encode_prompt("x")
        == load_prompter(small_policy).encode(["<|im_end|>"])[0]
    )


def test_a_template_that_refuses_the_user_is_an_error_that_says_so(
    small_policy: Path, tmp_path: Path
) -> None:
    directory = with_template(
        small_policy, tmp_path / "model", "{{ raise_exception('system first') }}"
    )
    with pytest.raises(
        ValueError,
        match=r"model\.name: the chat template refuses a single message of the user: system first",
    ):
        load_prompter(directory).encode_prompt("x")
