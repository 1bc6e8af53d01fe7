"""The policy as the learner sees it: the log-probabilities of the response tokens that are trained on."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from learner import qwen3
from learner.batching import MicroBatch


def load_policy(directory: Path, device: torch.device | str = "cpu", *, gradient_checkpointing: bool = False) -> PreTrainedModel:
    """The causal language model in a Hugging Face directory, float32, in training mode and without dropout: the policy that is trained is
    the one that engines sample from.

    With `gradient_checkpointing`, layers keep no activations. ValueError if `log_probs` would not be those of the model.
    """
    disable_progress_bar()
    config = AutoConfig.from_pretrained(directory)
    for name, value in config.to_dict().items():
        if "drop" in name and isinstance(value, float):
            setattr(config, name, 0.0)
    model = AutoModelForCausalLM.from_pretrained(directory, config=config, dtype=torch.float32, attn_implementation="sdpa")
    _check_logits(model)
    if gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.to(device).train()


def load_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer of the same directory."""
    return Tokenizer.from_file(str(directory / "tokenizer.json"))


def log_probs(
    model: PreTrainedModel, batch: MicroBatch, temperature: float, *, entropy_gradient: bool = False, precision: str = "float32"
) -> tuple[Tensor, Tensor]:
    """Log-probability of each trained token [N], and the entropy in nats of the distribution it was drawn from [N], float32.

    Both at the sampling temperature. Only the N trained positions go through the language-model head: responses are a fraction
    of the tokens, and logits are the widest tensor of all. Rows are padded on the right, so that causal attention needs no mask.
    The entropy carries a gradient only if asked to. `precision` is that of the products inside the layers.
    """
    device = next(model.parameters()).device
    tokens, rows, columns = batch.tokens.to(device), batch.rows.to(device), batch.columns.to(device)
    logits = _logits(model, final_hidden(model, tokens, rows, columns - 1, precision)) / temperature
    log_p = functional.log_softmax(logits, dim=-1)
    with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
        entropy = -(log_p.exp() * log_p).sum(-1)
    targets = tokens[rows, columns]
    return log_p.gather(-1, targets[:, None]).squeeze(-1), entropy


def final_hidden(model: PreTrainedModel, tokens: Tensor, rows: Tensor, columns: Tensor, precision: str = "float32") -> Tensor:
    """What the language-model head sees [N, hidden] of tokens [B, S], padded on the right, at the positions (rows [N], columns [N]);
    float32, whatever the products inside the layers were computed in."""
    with torch.autocast(tokens.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        if qwen3.applies_to(model):
            return qwen3.hidden_states(model, tokens, rows, columns).float()
        return model.base_model(input_ids=tokens, use_cache=False).last_hidden_state[rows, columns].float()


def _logits(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """float32 [N, V] of final hidden states [N, hidden]: the head's, and what Granite, Cohere and Gemma 2 make of them."""
    logits = model.get_output_embeddings()(hidden).float()
    logits = logits * (getattr(model.config, "logit_scale", None) or 1.0) / (getattr(model.config, "logits_scaling", None) or 1.0)
    cap = getattr(model.config, "final_logit_softcapping", None)
    return cap * torch.tanh(logits / cap) if cap else logits


def _check_logits(model: PreTrainedModel) -> None:
    """ValueError if a few tokens have other logits here than by the model's own forward pass, for whatever it does beside."""
    tokens = torch.arange(8)[None] % model.config.vocab_size
    columns = torch.arange(tokens.shape[1])
    with torch.no_grad():
        own = model.eval()(input_ids=tokens, use_cache=False).logits[0].float()
        ours = _logits(model, final_hidden(model, tokens, torch.zeros_like(columns), columns))
    if not torch.allclose(ours, own, rtol=1e-3, atol=1e-3):
        raise ValueError(
            f"model.name: the learner does not compute the logits of a {type(model).__name__} as the model does "
            f"(they differ by up to {float((ours - own).abs().max()):.2g}): it would train another policy than the one that plays"
        )
