"""The policy as the learner sees it: log-probabilities of the response tokens trained on."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    DynamicCache,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils.logging import disable_progress_bar

from learner.data.batching import MicroBatch
from learner.model import qwen3
from learner.model.head import compute_logits, read_logit_shape, token_log_probs

log = logging.getLogger(__name__)

PROBE_TOKENS = 24
"""Tokens that the learner's logits are compared on with the model's own."""

PROBE_WINDOW = 8
"""Tokens that sliding windows and chunks of attention are narrowed to while logits are compared.

A short text goes beyond them.
"""


def load_policy(
    directory: Path, device: torch.device | str = "cpu", *, gradient_checkpointing: bool = False
) -> PreTrainedModel:
    """Load the causal language model in a Hugging Face directory, float32, in training mode.

    It has no dropout: the policy that is trained is the one that engines sample from.
    Attention is PyTorch's fused one where that computes the same, else the model's own. With
    `gradient_checkpointing`, layers keep no activations. ValueError if `log_probs` would not be
    those of the model.
    """
    model = load_checked(directory, read_config(directory))
    if gradient_checkpointing:
        keep_no_activations(model)
    _move(model, device)
    return model


def read_config(directory: Path) -> PreTrainedConfig:
    """Read the configuration of a policy, with all that is random in training mode off."""
    config = AutoConfig.from_pretrained(directory, trust_remote_code=False)  # or it asks
    _without_noise(config)
    return config


def load_checked(directory: Path, config: PreTrainedConfig) -> PreTrainedModel:
    """Load the model of a configuration, with the attention that `load_policy` describes.

    ValueError if `log_probs` would not be those of the model.
    """
    disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(
        directory, config=config, dtype=torch.float32
    ).train()
    fast = attention_of(model) or "eager"
    model.set_attn_implementation("eager")
    if attention_of(model) != "eager":  # an old class, which has to be built with it
        model = AutoModelForCausalLM.from_pretrained(
            directory, config=config, dtype=torch.float32, attn_implementation="eager"
        ).train()
        fast = "eager"
    _choose_attention(model, fast)
    return model


def attention_of(model: PreTrainedModel) -> str | None:
    """Return the name of the attention that a model computes with: eager, sdpa, ..."""
    return model.config._attn_implementation  # noqa: SLF001  transformers has no other name for it


def keep_no_activations(model: PreTrainedModel) -> None:
    """Have layers compute their activations again for the gradient, instead of keeping them."""
    model.gradient_checkpointing_enable({"use_reentrant": False})


def _move(module: torch.nn.Module, device: torch.device | str) -> None:
    """Move a module in place, whose class may declare `to` with another signature."""
    module.to(device)


def _without_noise(config: PreTrainedConfig) -> None:
    """Switch off what is random in training mode: dropout, and the jitter of routers."""
    for name, value in list(vars(config).items()):
        if isinstance(value, PreTrainedConfig):
            _without_noise(value)
        elif isinstance(value, float) and ("drop" in name or "jitter" in name):
            setattr(config, name, 0.0)


def load_tokenizer(directory: Path) -> Tokenizer:
    """Load the tokenizer of the same directory."""
    return Tokenizer.from_file(str(directory / "tokenizer.json"))


def log_probs(
    model: PreTrainedModel,
    batch: MicroBatch,
    temperature: float,
    *,
    entropy_gradient: bool = False,
    precision: str = "float32",
) -> tuple[Tensor, Tensor]:
    """Compute the log-probability of each trained token [N], and its distribution's entropy [N].

    Both are float32 and at the sampling temperature; the entropy is in nats, and carries a gradient
    only if asked to. Only the N trained positions go through the language-model head, some of them
    at a time (learner/model/head.py): responses are a fraction of the tokens, and logits are the
    widest tensor of all. Rows are padded on the right, so that causal attention needs no mask.
    `precision` is that of the products inside the layers.
    """
    device = next(model.parameters()).device
    tokens = batch.tokens.to(device)
    rows = batch.rows.to(device)
    columns = batch.columns.to(device)
    prefix = batch.prefix.to(device)
    hidden = final_hidden(model, tokens, rows, columns - 1, precision, prefix)
    shape = read_logit_shape(model.config, temperature)
    return token_log_probs(
        _head_of(model), hidden, tokens[rows, columns], shape, entropy_gradient=entropy_gradient
    )


def final_hidden(
    model: PreTrainedModel,
    tokens: Tensor,
    rows: Tensor,
    columns: Tensor,
    precision: str = "float32",
    prefix: Tensor | None = None,
) -> Tensor:
    """Return what the language-model head sees [N, hidden] of tokens [B, S], padded on the right.

    It is for the positions (rows [N], columns [N]); float32, whatever the products inside the
    layers were computed in. All rows go on after the `prefix` [P], which is computed once; it is
    for models of which `can_share_prompts` holds.
    """
    with torch.autocast(tokens.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        if prefix is not None and len(prefix):
            hidden = _after_prefix(model, tokens, prefix)
        elif qwen3.applies_to(model):
            return qwen3.hidden_states(model, tokens, rows, columns).float()
        else:
            hidden = model.base_model(input_ids=tokens, use_cache=False).last_hidden_state
        return hidden[rows, columns].float()


def _after_prefix(model: PreTrainedModel, tokens: Tensor, prefix: Tensor) -> Tensor:
    """Compute final hidden states [B, S, hidden] of rows that go on after the same tokens [P]."""
    cache = model.base_model(input_ids=prefix[None], use_cache=True).past_key_values
    cache.batch_repeat_interleave(len(tokens))
    return model.base_model(input_ids=tokens, past_key_values=cache).last_hidden_state


def can_share_prompts(model: PreTrainedModel) -> bool:
    """Tell whether rows can go on after a prefix that is computed once, to the same hidden states.

    Both are compared on a few tokens. Where layers keep no activations, they keep no keys either.
    """
    if model.is_gradient_checkpointing:
        return False
    tokens = _probe_tokens(model)
    prefix, rest = tokens[0, : PROBE_TOKENS // 2], tokens[:, PROBE_TOKENS // 2 :]
    with torch.no_grad(), _narrow_windows(model.config):
        whole = model.base_model(input_ids=tokens, use_cache=True)
        if not isinstance(getattr(whole, "past_key_values", None), DynamicCache):
            return False
        expected = whole.last_hidden_state[:, len(prefix) :]
        found = _after_prefix(model, rest, prefix)
    return torch.allclose(found, expected, rtol=1e-3, atol=1e-3)


def _head_of(model: PreTrainedModel) -> nn.Linear:
    """Return the language-model head. ValueError for a model whose head is no linear layer."""
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise ValueError(
            f"model.name: the language-model head of a {type(model).__name__} is no linear layer"
        )
    return head


def _choose_attention(model: PreTrainedModel, fast: str) -> None:
    """Take the attention `fast` for a model that has its own ("eager") now, if it changes nothing.

    Both see the same few tokens beyond the model's sliding window. A cap of attention scores may do
    nothing on these, so its name in the configuration is enough. ValueError if the learner's logits
    are not the model's with its own attention either.
    """
    tokens = _probe_tokens(model)
    with torch.no_grad(), _narrow_windows(model.config):
        own = model.eval()(input_ids=tokens, use_cache=False).logits[0].float()
        model.train()
        if not _caps_attention(model.config) and fast != "eager":
            model.set_attn_implementation(fast)
            if torch.allclose(_probe_logits(model, tokens), own, rtol=1e-3, atol=1e-3):
                return
            model.set_attn_implementation("eager")
        ours = _probe_logits(model, tokens)
    if not torch.allclose(ours, own, rtol=1e-3, atol=1e-3):
        raise ValueError(
            f"model.name: the learner does not compute the logits of a {type(model).__name__} as "
            "the model does "
            f"(they differ by up to {float((ours - own).abs().max()):.2g}): it would train "
            "another policy than the one that plays"
        )
    if fast != "eager":
        log.info(
            "%s: its own attention is used, since %s leaves out a part of it",
            type(model).__name__,
            fast,
        )


def _probe_tokens(model: PreTrainedModel) -> Tensor:
    """Return some tokens of a model's vocabulary, int64 [1, PROBE_TOKENS]."""
    device = next(model.parameters()).device
    return (
        torch.arange(PROBE_TOKENS, device=device)[None] % model.config.get_text_config().vocab_size
    )


def _probe_logits(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """Return logits float32 [S, V] of tokens [1, S], as the learner computes them."""
    columns = torch.arange(tokens.shape[1])
    hidden = final_hidden(model, tokens, torch.zeros_like(columns), columns)
    return compute_logits(_head_of(model), hidden, read_logit_shape(model.config))


def _caps_attention(config: PreTrainedConfig) -> bool:
    """Tell whether attention scores are soft-capped, as in Gemma 2.

    PyTorch's fused attention cannot do that.
    """
    values = vars(config.get_text_config()).items()
    return any("softcap" in name and "attn" in name and value for name, value in values)


@contextmanager
def _narrow_windows(config: PreTrainedConfig) -> Iterator[None]:
    """Narrow the windows and chunks of a model's attention to PROBE_WINDOW while inside."""
    text = config.get_text_config()
    names = ("sliding_window", "attention_chunk_size")
    kept = {name: getattr(text, name) for name in names if getattr(text, name, None)}
    try:
        for name, value in kept.items():
            setattr(text, name, min(value, PROBE_WINDOW))
        yield
    finally:
        for name, value in kept.items():
            setattr(text, name, value)
