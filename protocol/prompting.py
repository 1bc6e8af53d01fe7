"""Text to tokens and back, with the policy's own tokenizer and chat template.

Actors and demonstrations alike use it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from tokenizers import Tokenizer

from protocol.chat_format import ChatFormat, ChatOptions
from protocol.chat_template import THOUGHT_BEGIN, THOUGHT_END, ChatTemplate
from protocol.model_json import read_model_json, text_config

SPECIAL_TOKENS = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
"""Special tokens that templates know by name."""

BEFORE_TAGS = ("", " ", "\n", ".", ". ", "!", "?", ",", ":", ";", ")", "]", '"', "'", "`", "*", "a")
AFTER_TAGS = ("", " ", "\n", "\n\n", "<", "a", ".")
"""Texts beside a tag, with which a tokenizer may join a part of it."""


class Prompter:
    """The tokenizer and the chat template of a model."""

    def __init__(self, tokenizer_json: bytes, chat: ChatFormat) -> None:
        """Raises ValueError for a template that cannot be rendered as `chat` says."""
        self._tokenizer = Tokenizer.from_str(tokenizer_json.decode())
        self._template = ChatTemplate(chat)
        self.chat = chat

    @property
    def opens_thought(self) -> bool:
        """True if a response begins inside a thought, which its prompt has opened."""
        return self._template.opens_thought

    @property
    def end_tokens(self) -> Sequence[int]:
        """Tokens that end a response, the template's own first."""
        return self.chat.end_tokens

    def find_turn_end(self) -> str:
        """Return the text that follows an answer; ValueError of a template that renders none."""
        return self._template.find_turn_end()

    def encode_prompt(self, message: str) -> list[int]:
        """Encode one user message, up to where the assistant's answer begins."""
        return self.encode_prompts([message])[0]

    def encode_prompts(self, messages: Sequence[str]) -> list[list[int]]:
        """Encode each message as `encode_prompt` does, faster for many."""
        return self.encode([self._template.render_prompt(message) for message in messages])

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        *,
        add_generation_prompt: bool,
    ) -> str:
        """Render a conversation; ValueError with the reason of a template that refuses it."""
        return self._template.render(messages, tools, add_generation_prompt=add_generation_prompt)

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
        """Decode tokens, without special ones such as the end of the turn."""
        return self._tokenizer.decode(tokens, skip_special_tokens=True)

    def read_response(self, tokens: list[int]) -> str:
        """Decode a response, with the thought that its prompt has begun.

        One that has a thought of its own, after an empty one in the prompt, is as it stands.
        """
        ends = self.chat.end_tokens
        length = len(tokens)
        while length and tokens[length - 1] in ends:
            length -= 1
        response = self.decode(tokens[:length])
        if not self.opens_thought and THOUGHT_BEGIN in response:
            return response
        return self._template.thought + response

    def encode_responses(self, responses: Sequence[str]) -> list[list[int]]:
        """Encode responses as the policy has to write them, to the end of the turn.

        They are whole: what their prompt has of a thought is left out.
        """
        texts = [self._without_begun_thought(response) for response in responses]
        return [[*tokens, *self.chat.end_tokens[:1]] for tokens in self.encode(texts)]

    def _without_begun_thought(self, response: str) -> str:
        if not self._template.thought:
            return response
        begins = response.startswith(THOUGHT_BEGIN)
        if self.opens_thought and not begins:
            return f"{THOUGHT_END}\n{response}"
        if self.opens_thought:
            return response.removeprefix(THOUGHT_BEGIN)
        _, end, answer = response.partition(THOUGHT_END)
        if begins and end:
            return answer.lstrip()
        return response

    def spell(self, tag: str) -> tuple[tuple[int, ...], ...]:
        """Find the token ids that a tag may have, by what stands beside it.

        They are many where it is no token of its own, and none where the tokenizer cannot spell it.
        """
        texts = [(before, before + tag + after) for before in BEFORE_TAGS for after in AFTER_TAGS]
        encodings = self._tokenizer.encode_batch(
            [text for _, text in texts], add_special_tokens=False
        )
        spellings: dict[tuple[int, ...], None] = {}
        for (before, _), encoding in zip(texts, encodings, strict=True):
            begin = len(before)
            end = begin + len(tag)
            tokens = tuple(
                token
                for token, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True)
                if start < end and stop > begin
            )
            if tag in self._tokenizer.decode(list(tokens), skip_special_tokens=False):
                spellings[tokens] = None
        return tuple(spellings)


def load_prompter(model_dir: Path, options: ChatOptions | None = None) -> Prompter:
    """Load the prompter of a Hugging Face directory.

    Raises ValueError if it has no chat template, one that `options` do not fit, or no token that
    ends a turn.
    """
    tokenizer_json = (model_dir / "tokenizer.json").read_bytes()
    chat = read_chat_format(model_dir, options)
    turn_end = ""  # of a template that renders no answers, which single prompts do without
    with contextlib.suppress(ValueError):
        turn_end = ChatTemplate(chat).find_turn_end().lstrip()
    ends = _find_end_tokens(model_dir, Tokenizer.from_str(tokenizer_json.decode()), turn_end)
    return Prompter(tokenizer_json, msgspec.structs.replace(chat, end_tokens=ends))


def read_chat_format(model_dir: Path, options: ChatOptions | None = None) -> ChatFormat:
    """Read how a model is talked to, but for its end tokens; ValueError for no chat template."""
    options = options or ChatOptions()
    return ChatFormat(
        template=read_chat_template(model_dir),
        special_tokens=_read_special_tokens(model_dir),
        arguments=dict(options.arguments),
        system_prompt=options.system_prompt,
        past_thoughts=options.past_thoughts,
        tool_format=options.tool_format,
    )


def read_chat_template(model_dir: Path) -> str:
    """Read the chat template of a Hugging Face directory, in either place where it may stand.

    Of several it is the one named "default". Raises ValueError without one.
    """
    file = model_dir / "chat_template.jinja"
    if file.exists():
        return file.read_text("utf-8")
    template = _read_if_there(model_dir / "tokenizer_config.json").get("chat_template")
    if isinstance(template, list):
        template = {named.get("name"): named.get("template") for named in template}.get("default")
    if not isinstance(template, str):
        raise ValueError(
            f"model.name: {model_dir} has no chat template (chat_template.jinja, or in "
            "tokenizer_config.json)"
        )
    return template


def read_vocabulary(model_dir: Path) -> int:
    """Read how many tokens the policy chooses from: the width of its logits.

    Raises ValueError for a config.json that does not say.
    """
    file = model_dir / "config.json"
    width = text_config(read_model_json(file)).get("vocab_size")
    if not isinstance(width, int):
        raise ValueError(f"model.name: {file} has no vocab_size")
    return width


def _read_special_tokens(model_dir: Path) -> dict[str, str]:
    """Read the texts of special tokens by their names.

    As in transformers, a file of their own counts where the settings list no added tokens.
    """
    settings = _read_if_there(model_dir / "tokenizer_config.json")
    if "added_tokens_decoder" not in settings:
        settings |= _read_if_there(model_dir / "special_tokens_map.json")
    texts = {name: _token_text(settings.get(name)) for name in SPECIAL_TOKENS}
    return {name: text for name, text in texts.items() if text}


def _find_end_tokens(model_dir: Path, tokenizer: Tokenizer, turn_end: str) -> list[int]:
    """Find the tokens that end a response: first the one that `turn_end` begins with, if any.

    The others are those of the tokenizer's settings, and of the model's for generation.
    """
    ends: dict[int, None] = {}
    after_answer = tokenizer.encode(turn_end, add_special_tokens=False).ids[:1]
    added = tokenizer.get_added_tokens_decoder()
    ends |= {token: None for token in after_answer if token in added and added[token].special}
    named = _read_special_tokens(model_dir).get("eos_token")
    if named is not None:
        token = tokenizer.token_to_id(named)
        if token is None:
            raise ValueError(
                f"model.name: the tokenizer of {model_dir} has no token {named}, which its "
                "tokenizer_config.json names eos_token"
            )
        ends[token] = None
    ends |= dict.fromkeys(_read_end_tokens(model_dir))
    if not ends:
        raise ValueError(
            f"model.name: {model_dir} names no token that ends a turn: eos_token in "
            "tokenizer_config.json, or eos_token_id in generation_config.json"
        )
    return list(ends)


def _read_end_tokens(model_dir: Path) -> Iterator[int]:
    """Yield the end tokens of generation_config.json and config.json."""
    for name in ("generation_config.json", "config.json"):
        tokens = _read_if_there(model_dir / name).get("eos_token_id")
        if isinstance(tokens, int):
            yield tokens
        elif tokens:
            yield from tokens


def _read_if_there(file: Path) -> dict[str, Any]:
    """Read a file of a model; an empty table if it is not there. Raises ValueError for no JSON."""
    if not file.exists():
        return {}
    return read_model_json(file)


def _token_text(token: str | dict | None) -> str:
    """Return the text of a special token, which may stand there with its properties; or nothing."""
    if isinstance(token, dict):
        token = token.get("content")
    return token or ""
