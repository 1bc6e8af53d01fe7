"""Text to tokens and back, with the policy's own tokenizer and chat template.

Actors and demonstrations alike use it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2.sandbox
from tokenizers import Tokenizer

from protocol.model_json import read_model_json, text_config
from protocol.tool_calls import to_json


class Prompter:
    """The tokenizer and the chat template of a Hugging Face directory."""

    def __init__(self, tokenizer_json: bytes, chat_template: str) -> None:
        self._tokenizer = Tokenizer.from_str(tokenizer_json.decode())
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True
        )
        environment.globals["raise_exception"] = _raise_template_error
        environment.filters["tojson"] = to_json
        self._template = environment.from_string(chat_template)

    def encode_prompt(self, message: str) -> list[int]:
        """Encode one user message, up to where the assistant's answer begins."""
        return self.encode_prompts([message])[0]

    def encode_prompts(self, messages: Sequence[str]) -> list[list[int]]:
        """Encode each message as `encode_prompt` does, faster for many."""
        texts = [
            self._template.render(
                messages=[{"role": "user", "content": message}], add_generation_prompt=True
            )
            for message in messages
        ]
        return self.encode(texts)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        *,
        add_generation_prompt: bool,
    ) -> str:
        """Render a conversation; ValueError with the reason of a template that refuses it."""
        try:
            return self._template.render(
                messages=messages, tools=tools, add_generation_prompt=add_generation_prompt
            )
        except Exception as error:  # whatever its expressions raise
            raise ValueError(f"the chat template refuses a conversation: {error}") from None

    def special_tokens(self) -> dict[int, str]:
        """Texts of the special tokens, by id."""
        added = self._tokenizer.get_added_tokens_decoder()
        return {token: content.content for token, content in added.items() if content.special}

    def decode_exactly(self, tokens: Sequence[int]) -> str:
        """Decode tokens, special ones included."""
        return self._tokenizer.decode(list(tokens), skip_special_tokens=False)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode texts as they stand."""
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def decode(self, tokens: list[int]) -> str:
        """Decode a response, without special tokens such as the end of the turn."""
        return self._tokenizer.decode(tokens, skip_special_tokens=True)


def read_chat_template(model_dir: Path) -> str:
    """Read the chat template of a Hugging Face directory, in either place where it may stand.

    Of several it is the one named "default". The special tokens that it names are set in it.
    Raises ValueError without one.
    """
    settings = _read_tokenizer_settings(model_dir)
    template = settings.get("chat_template")
    file = model_dir / "chat_template.jinja"
    if file.exists():
        template = file.read_text()
    if isinstance(template, list):
        template = {named.get("name"): named.get("template") for named in template}.get("default")
    if not isinstance(template, str):
        raise ValueError(
            f"model.name: {model_dir} has no chat template (chat_template.jinja, or in "
            "tokenizer_config.json)"
        )
    for name in ("eos_token", "bos_token"):
        token = _token_text(settings.get(name))
        if name in template and token:
            text = json.dumps(token)
            template = f"{{% set {name} = {text} %}}{template}"
    return template


def read_turn_end(model_dir: Path) -> str:
    """Read the token that ends the policy's turns: eos_token of tokenizer_config.json.

    Raises ValueError without one.
    """
    token = _token_text(_read_tokenizer_settings(model_dir).get("eos_token"))
    if not token:
        raise ValueError(
            f"model.name: {model_dir} has no tokenizer_config.json that names its eos_token"
        )
    return token


def read_vocabulary(model_dir: Path) -> int:
    """Read how many tokens the policy chooses from: the width of its logits.

    Raises ValueError for a config.json that does not say.
    """
    file = model_dir / "config.json"
    width = text_config(read_model_json(file)).get("vocab_size")
    if not isinstance(width, int):
        raise ValueError(f"model.name: {file} has no vocab_size")
    return width


def _read_tokenizer_settings(model_dir: Path) -> dict:
    file = model_dir / "tokenizer_config.json"
    if not file.exists():
        return {}
    return read_model_json(file)


def _token_text(token: str | dict | None) -> str:
    """Return the text of a special token, which may stand there with its properties; or nothing."""
    if isinstance(token, dict):
        token = token.get("content")
    return token or ""


def _raise_template_error(reason: str) -> None:
    raise ValueError(
        f"model.name: the chat template refuses a single message of the user: {reason}"
    )


def load_prompter(model_dir: Path) -> Prompter:
    """Load the prompter of a Hugging Face directory; ValueError if it has no chat template."""
    return Prompter((model_dir / "tokenizer.json").read_bytes(), read_chat_template(model_dir))
