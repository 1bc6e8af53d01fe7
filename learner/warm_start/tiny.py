"""Make a small policy: a tokenizer trained on demonstrations, and a Qwen3 of random weights.

The tokenizer is a byte-level BPE, so that every text has tokens and every token sequence has a
text. Its splits are chosen for what a small policy costs and has to learn:

- What a turn copies from its prompt has the same tokens in both, so that pointing at it is copying
  tokens.
  - With `model.tiny.tokens = "phrases"` that holds for numbers, and for names: the words that are
    ever followed by a number ("cabinet 1"). What stands between them in a prompt may merge across
    words ("; go to", "You arrive at"), since prompts are most of the tokens that are trained on.
  - With "words" it holds for every word, where agents write words that no demonstration has. It
    holds for the first one of an action like search[red lamp], too, which is read as
    search[ red lamp] and written without the space. Numbers are tokens of two digits there: whole
    ones would be many, and each seen too rarely to be copied.
- A *response* teaches the tokenizer its words only, one by one: thoughts keep enough tokens for
  control to act on.
- Tags are single tokens, but not special ones: they stay in decoded text.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from transformers.utils.logging import disable_progress_bar

from config import TinySection
from learner.warm_start.induction import ROPE_THETA, start_with_induction

END_OF_TEXT = "<|endoftext|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
SPECIAL_TOKENS = [END_OF_TEXT, TURN_START, TURN_END]
ROLES = ["user", "assistant"]
"""Each is a token, with the newline after it: a turn's frame is six tokens."""

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] "
    "}}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

HEAD_SIZE = 32
"""Channels of an attention head."""
MAX_POSITIONS = 2048
"""Tokens of the longest prompt and response together."""
_ROLE = rf"(?:{'|'.join(ROLES)})\n"
_WORDS = "|".join([_ROLE, r" ?\p{L}+", r" ?\p{N}{1,2}", r" ?[^\s\p{L}\p{N}]+", r"\s"])
_TAG = re.compile(r"</?[a-z_]+>")
_WORD = re.compile(r" ?[A-Za-z]+| ?\d+| ?[^\sA-Za-z\d]+|\s")


def build_tiny(
    directory: Path, settings: TinySection, turns: Iterable[tuple[str, str]], seed: int
) -> None:
    """Write a policy (float32) to a directory, in Hugging Face's format.

    `turns` are (prompt, response) texts to learn tokens from. The directory appears complete or not
    at all; one that exists is replaced.
    """
    disable_progress_bar()
    directory = Path(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    unfinished = directory.parent / f".{directory.name}-{os.getpid()}"
    unfinished.mkdir()
    try:
        tokenizer = train_tokenizer(settings, list(turns))
        save_tokenizer(tokenizer, unfinished)
        model = build_random_model(settings, tokenizer, seed)
        model.save_pretrained(unfinished)
        if directory.exists():
            shutil.rmtree(directory)
        os.replace(unfinished, directory)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def train_tokenizer(settings: TinySection, turns: list[tuple[str, str]]) -> Tokenizer:
    """Train a tokenizer of at most `model.tiny.vocabulary` tokens.

    ValueError if that is too few for the bytes, the tags and the special tokens.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tags = find_tags(turns)
    smallest = len(alphabet) + len(SPECIAL_TOKENS) + len(tags)
    if settings.vocabulary < smallest:
        raise ValueError(
            f"model.tiny.vocabulary ({settings.vocabulary}) must be at least {smallest}: all "
            "bytes, tags and special tokens"
        )
    tokenizer = Tokenizer(models.BPE())
    if settings.tokens == "words":
        isolated = _WORDS
        tokenizer.normalizer = normalizers.Replace(Regex(r"\[(?! )"), "[ ")
        tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace("[ ", "[")])
    else:
        isolated = _build_phrase_pattern(turns)
        tokenizer.decoder = decoders.ByteLevel()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(isolated), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocabulary - len(tags),
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=sorted(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_iterate_pieces(turns), trainer)
    tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in tags])
    return tokenizer


def find_tags(turns: list[tuple[str, str]]) -> list[str]:
    """Find every tag once, those of the responses first."""
    texts = [response for _, response in turns] + [prompt for prompt, _ in turns]
    return list(dict.fromkeys(tag for text in texts for tag in _TAG.findall(text)))


def _build_phrase_pattern(turns: list[tuple[str, str]]) -> str:
    """Write the pattern of what is a word of its own with `model.tiny.tokens = "phrases"`."""
    names = {name for prompt, _ in turns for name in re.findall(r"([A-Za-z]+) \d", prompt)}
    longest_first = sorted(names, key=lambda name: (-len(name), name))
    patterns = [_ROLE, r" ?\d+", r"\n"]
    if names:
        patterns.insert(1, rf" ?(?:{'|'.join(longest_first)})(?![A-Za-z])")
    return "|".join(patterns)


def _iterate_pieces(turns: list[tuple[str, str]]) -> Iterator[str]:
    """Yield the texts that tokens are learned from: prompts between tags, responses by words."""
    for prompt, response in turns:
        yield from (f"{role}\n" for role in ROLES)
        yield from _TAG.split(prompt)
        for piece in _TAG.split(response):
            yield from _WORD.findall(piece)


def save_tokenizer(tokenizer: Tokenizer, directory: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json, with the chat template inside the latter."""
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = CHAT_TEMPLATE
    wrapped.save_pretrained(directory, save_jinja_files=False)


def build_random_model(settings: TinySection, tokenizer: Tokenizer, seed: int) -> Qwen3ForCausalLM:
    """Build a model (float32) of random weights around an induction circuit.

    The same seed makes the same weights; the caller's random state is left alone.
    """
    config = Qwen3Config(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=settings.hidden_size,
        intermediate_size=3 * settings.hidden_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        head_dim=HEAD_SIZE,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        # 0.02 is for wide models; with 1/sqrt(width) a narrow one learns to copy from its prompt
        # several times sooner.
        initializer_range=settings.hidden_size**-0.5,
        bos_token_id=None,
        eos_token_id=tokenizer.token_to_id(TURN_END),
        pad_token_id=tokenizer.token_to_id(END_OF_TEXT),
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config)
        start_with_induction(model)
    model.generation_config.do_sample = True
    model.generation_config.eos_token_id = config.eos_token_id
    model.generation_config.pad_token_id = config.pad_token_id
    return model
