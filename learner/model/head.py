"""The language-model head on the trained positions: log-probabilities and entropies, no logits.

Logits are the widest tensor of all: 32,768 positions of a vocabulary of 151,936 take 20 GB in
float32, and autograd would keep several of that size. Here they come into being a chunk of
positions at a time. The gradient computes a chunk's logits again, a third more work for the head;
where all positions fit into one chunk, its probabilities are kept instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from transformers import PreTrainedConfig

CHUNK_LOGITS = 2**26
"""Logits that exist at a time (256 MiB in float32); the gradient needs up to three such tensors."""


class LogitShape(NamedTuple):
    """Constants of the logits: cap(scale * products of the head) / temperature."""

    scale: float = 1.0
    cap: float | None = None
    """Bound c of the soft cap c * tanh(x / c); None: there is none."""
    temperature: float = 1.0


def read_logit_shape(config: PreTrainedConfig, temperature: float = 1.0) -> LogitShape:
    """Read what Granite, Cohere and Gemma 2 make of their products from a model's configuration."""
    multiplied = getattr(config, "logit_scale", None) or 1.0
    divided = getattr(config, "logits_scaling", None) or 1.0
    cap = getattr(config, "final_logit_softcapping", None) or None
    return LogitShape(multiplied / divided, cap, temperature)


@torch.no_grad()
def compute_logits(head: nn.Linear, hidden: Tensor, shape: LogitShape) -> Tensor:
    """Compute all logits [N, V] of final hidden states [N, hidden], without a gradient."""
    return _logits(hidden, head.weight, head.bias, shape)


def token_log_probs(
    head: nn.Linear,
    hidden: Tensor,
    targets: Tensor,
    shape: LogitShape,
    *,
    entropy_gradient: bool = False,
    chunk_logits: int = CHUNK_LOGITS,
) -> tuple[Tensor, Tensor]:
    """Compute each target's log-probability [N], and the entropy [N] of what it is drawn from.

    `hidden` [N, hidden] has the dtype of the head's weight [V, hidden], which is that of the
    results; `targets` int64 [N]. The entropy, in nats, has a gradient only if asked for.
    `chunk_logits`: how many logits exist at a time, of one position at least.
    """
    form = _Form(shape, entropy_gradient, max(1, chunk_logits // len(head.weight)))
    return _TokenLogProbs.apply(hidden, head.weight, head.bias, targets, form)


class _Form(NamedTuple):
    """Arguments that `_TokenLogProbs` takes beside tensors."""

    shape: LogitShape
    entropy_gradient: bool
    chunk: int  # positions

    def chunks(self, positions: int) -> Iterator[slice]:
        """Give the positions in chunks."""
        for start in range(0, positions, self.chunk):
            yield slice(start, start + self.chunk)


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, shape: LogitShape) -> Tensor:
    logits = functional.linear(hidden, weight, bias)
    if shape.scale != 1.0:
        logits.mul_(shape.scale)
    if shape.cap is not None:
        logits.div_(shape.cap).tanh_().mul_(shape.cap)
    if shape.temperature != 1.0:
        logits.div_(shape.temperature)
    return logits


def _to_products(to_logits: Tensor, logits: Tensor, shape: LogitShape) -> Tensor:
    """Take a gradient from logits back to the head's products. It takes both tensors' memory.

    d tanh(x) = 1 - tanh(x)^2, and the logits have tanh's value.
    """
    if shape.cap is not None:
        bounded = logits.mul_(shape.temperature / shape.cap)
        to_logits.mul_(bounded.square_().neg_().add_(1))
    factor = shape.scale / shape.temperature
    if factor != 1.0:
        to_logits.mul_(factor)
    return to_logits


class _TokenLogProbs(torch.autograd.Function):
    """`token_log_probs`, with its gradient written out.

    With p = softmax(z) of a position's logits z, target t and entropy H:
    d log p_t / d z_j = [j = t] - p_j and d H / d z_j = -p_j (log p_j + H).
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        form: _Form,
    ) -> tuple[Tensor, Tensor]:
        log_p = hidden.new_empty(len(hidden))
        entropy = hidden.new_empty(len(hidden))
        kept = None
        for chunk in form.chunks(len(hidden)):
            logits = _logits(hidden[chunk], weight, bias, form.shape)
            log_all = functional.log_softmax(logits, dim=-1)
            del logits
            log_p[chunk] = log_all.gather(-1, targets[chunk, None]).squeeze(-1)
            entropy[chunk] = -torch.linalg.vecdot(log_all.exp(), log_all)
            if len(log_all) == len(hidden) and form.shape.cap is None:
                kept = log_all  # all there are: the gradient need not compute them again
        ctx.save_for_backward(hidden, weight, bias, targets, entropy, kept)
        ctx.form = form
        if not form.entropy_gradient:
            ctx.mark_non_differentiable(entropy)
        return log_p, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_log_p: Tensor, to_entropy: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, entropy, kept = ctx.saved_tensors
        form = ctx.form
        wanted = zip((hidden, weight, bias), ctx.needs_input_grad, strict=False)
        to_hidden, to_weight, to_bias = (
            torch.zeros_like(tensor) if is_wanted else None for tensor, is_wanted in wanted
        )
        for chunk in form.chunks(len(hidden)):
            if kept is None:
                logits = _logits(hidden[chunk], weight, bias, form.shape)
                log_all = functional.log_softmax(logits, dim=-1)
            else:
                logits = kept  # which are asked for only with a cap, and then nothing is kept
                log_all = kept
            to_logits = log_all.exp()
            to_target = to_log_p[chunk, None]
            if form.entropy_gradient:
                factor = (log_all + entropy[chunk, None]).mul_(to_entropy[chunk, None])
                to_logits.mul_(factor.add_(to_target).neg_())
            else:
                to_logits.mul_(-to_target)
            to_logits.scatter_add_(-1, targets[chunk, None], to_target)
            to_products = _to_products(to_logits, logits, form.shape)
            if to_hidden is not None:
                torch.mm(to_products, weight, out=to_hidden[chunk])
            if to_weight is not None:
                to_weight.addmm_(to_products.T, hidden[chunk])
            if to_bias is not None:
                to_bias.add_(to_products.sum(0))
        return to_hidden, to_weight, to_bias, None, None
