"""Text to tokens and back, with the policy's own tokenizer and chat template: for actors, and for
demonstrations alike."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import jinja2.sandbox
from tokenizers import Tokenizer


class Prompter:
    """The tokenizer and the chat template of a Hugging Face directory."""

    def __init__(self, tokenizer_json: bytes, chat_template: str) -> None:
        self._tokenizer = Tokenizer.from_str(tokenizer_json.decode())
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True
        )
        environment.globals["raise_exception"] = _refuse
        self._template = environment.from_string(chat_template)

    def encode_prompt(self, message: str) -> list[int]:
        """Token ids of one user message, up to where the assistant's answer begins."""
        return self.encode_prompts([message])[0]

    def encode_prompts(self, messages: Sequence[str]) -> list[list[int]]:
        """`encode_prompt` of each message, faster for many."""
        texts = [
            self._template.render(
                messages=[{"role": "user", "content": m}], add_generation_prompt=True
            )
            for m in messages
        ]
        return self.encode(texts)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts as they stand."""
        return [
            encoding.ids
            for encoding in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        ]

    def decode(self, tokens: list[int]) -> str:
        """The response's text, without special tokens such as the end of the turn."""
        return self._tokenizer.decode(tokens, skip_special_tokens=True)


def read_chat_template(model_dir: Path) -> str:
    """The chat template of a Hugging Face directory, in either place where it may stand, the one
    named "default" if there are several; with the special tokens that it speaks of by name.
    ValueError without one."""
    settings = _tokenizer_settings(model_dir)
    file = model_dir / "chat_template.jinja"
    template = file.read_text() if file.exists() else settings.get("chat_template")
    if isinstance(template, list):
        template = {named["name"]: named["template"] for named in template}.get("default")
    if template is None:
        raise ValueError(
            f"model.name: {model_dir} has no chat template (chat_template.jinja, or in "
            "tokenizer_config.json)"
        )
    tokens = [
        name for name in ("bos_token", "eos_token") if name in template and settings.get(name)
    ]
    return (
        "".join(f"{{% set {name} = {json.dumps(_content(settings[name]))} %}}" for name in tokens)
        + template
    )


def read_turn_end(model_dir: Path) -> str:
    """The token that ends the policy's turns: eos_token of tokenizer_config.json.

    ValueError without one.
    """
    token = _tokenizer_settings(model_dir).get("eos_token")
    if token is None:
        raise ValueError(
            f"model.name: {model_dir} has no tokenizer_config.json that names its eos_token"
        )
    return _content(token)


def read_vocabulary(model_dir: Path) -> int:
    """Tokens that the policy chooses from: the width of its logits."""
    config = json.loads((model_dir / "config.json").read_text())
    return int(config.get("text_config", config)["vocab_size"])


def _tokenizer_settings(model_dir: Path) -> dict:
    file = model_dir / "tokenizer_config.json"
    return json.loads(file.read_text()) if file.exists() else {}


def _content(token: str | dict) -> str:
    """Of a special token, which may stand there with its properties."""
    return token["content"] if isinstance(token, dict) else token


def _refuse(reason: str) -> None:
    raise ValueError(
        f"model.name: the chat template refuses a single message of the user: {reason}"
    )


def load_prompter(model_dir: Path) -> Prompter:
    """The prompter of a Hugging Face directory. ValueError if it has no chat template."""
    return Prompter((model_dir / "tokenizer.json").read_bytes(), read_chat_template(model_dir))
