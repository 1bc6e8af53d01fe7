"""Text to prompt tokens and response tokens to text, with the policy's own tokenizer and chat template."""

from __future__ import annotations

import jinja2.sandbox
from tokenizers import Tokenizer


class Prompter:
    """The policy's tokenizer and chat template, as its Hugging Face directory has them."""

    def __init__(self, tokenizer_json: bytes, chat_template: str) -> None:
        self._tokenizer = Tokenizer.from_str(tokenizer_json.decode())
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        self._template = environment.from_string(chat_template)

    def prompt(self, message: str) -> list[int]:
        """Token ids of one user message, up to where the assistant's answer begins."""
        text = self._template.render(messages=[{"role": "user", "content": message}], add_generation_prompt=True)
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def text(self, tokens: list[int]) -> str:
        """The response's text, without special tokens such as the end of the turn."""
        return self._tokenizer.decode(tokens, skip_special_tokens=True)
