"""The policy as one module, whose weights may be sharded between ranks.

Sharding is FSDP2 (torch.distributed.fsdp.fully_shard). Each rank holds a slice of every weight, of
its gradient and of the optimizer's moments, in float32. A layer's weights are gathered for the time
of its computation, in the layers' precision. Gradients are summed over the ranks in float32 when
they are sliced. Embeddings, last norm and head are float32 throughout.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import (
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from transformers import PreTrainedModel

from learner.data.batching import MicroBatch
from learner.model import qwen3
from learner.model.loading import fill_weights
from learner.model.lora import adapters, plain_name
from learner.model.policy import can_share_prompts, final_hidden, log_probs
from learner.model.slices import full_tensor
from learner.ranks import Ranks

LAYERS_PRECISION = {
    "float32": MixedPrecisionPolicy(),
    "bfloat16": MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32),
}
"""What layers are gathered in, by `learner.precision`; gradients are summed in float32."""


class Policy(nn.Module):
    """A causal language model by what is asked of it here.

    With several ranks, all must ask for the same at the same time.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        ranks: Ranks,
        precision: str = "float32",
        *,
        compiled: bool = False,
    ) -> None:
        """`model` may be on the meta device if there is a group: each rank reads its slices.

        `compiled`: layers are, by torch.compile.
        """
        super().__init__()
        self.model = model
        self._autocast = precision  # of layers whose weights are float32
        if compiled:
            _compile_layers(model)
        if ranks.is_group:
            self._autocast = "float32"
            for layer in _layers_of(model, "learner.ranks"):
                fully_shard(layer, mesh=ranks.mesh, mp_policy=LAYERS_PRECISION[precision])
            fully_shard(self, mesh=ranks.mesh)
            register_fsdp_forward_method(self, "state_features")
        if qwen3.applies_to(model):
            for layer in qwen3.decoder_layers(model):
                qwen3.bind_layer(layer, compiled=compiled)
        if any(parameter.is_meta for parameter in model.parameters()):
            fill_weights(model, ranks)
        self._passes_alone = not (ranks.is_group or compiled)

    @functools.cached_property
    def shares_prompts(self) -> bool:
        """Whether micro-batches may have a prefix; ranks take every pass together."""
        return self._passes_alone and can_share_prompts(self.model)

    def forward(
        self, batch: MicroBatch, temperature: float, entropy_gradient: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Compute log-probs and entropies, as `learner.model.policy.log_probs` does."""
        return log_probs(
            self.model,
            batch,
            temperature,
            entropy_gradient=entropy_gradient,
            precision=self._autocast,
        )

    def state_features(self, prompts: Sequence[Sequence[np.ndarray]]) -> Tensor:
        """Return the last hidden state [N, hidden] at the last token of each of N prompts.

        A row has some of them, each of which begins with the one before. It has no gradient.
        """
        longest = [row[-1] for row in prompts]
        tokens = np.zeros((len(longest), max(map(len, longest))), dtype=np.int64)
        for row, prompt in zip(tokens, longest, strict=True):
            row[: len(prompt)] = prompt
        device = next(self.model.parameters()).device
        counts = [len(row) for row in prompts]
        rows = torch.from_numpy(np.repeat(np.arange(len(prompts)), counts)).to(device)
        ends = torch.tensor([len(one) - 1 for row in prompts for one in row], device=device)
        with torch.no_grad():
            return final_hidden(
                self.model, torch.from_numpy(tokens).to(device), rows, ends, self._autocast
            )


def _layers_of(model: PreTrainedModel, setting: str) -> nn.ModuleList:
    layers = getattr(model.base_model, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise ValueError(
            f"{setting}: the layers of a {type(model).__name__} are not where they are looked for; "
            "leave it at its default"
        )
    return layers


def _compile_layers(model: PreTrainedModel) -> None:
    """Have layers compiled when they are first computed, for all lengths alike."""
    for layer in _layers_of(model, "learner.compile"):
        layer.compile(dynamic=True)


def merged_weights(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Give the weights, as this rank has them, by their names in a checkpoint.

    Those that are another's (a tied language-model head) come once. Adapters are merged into what
    they belong to. All ranks must ask.
    """
    tied = None
    if model.config.tie_word_embeddings:
        tied = "lm_head.weight"
    adapter_of = dict(adapters(model))
    for stored, tensor in model.state_dict().items():
        name = plain_name(stored)
        if name in (tied, None):
            continue
        weight = tensor.detach()
        adapter = adapter_of.get(name)
        if adapter is not None:
            weight = weight + adapter.scale * (adapter.b.detach() @ adapter.a.detach())
        yield name, weight


def full_state_dict(
    model: PreTrainedModel, dtype: torch.dtype | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Give the `merged_weights` in full, one after another.

    `dtype`: the one that they are cast to before they are gathered. All ranks must ask.
    """
    for name, weight in merged_weights(model):
        yield name, full_tensor(weight.to(dtype or weight.dtype))


@torch.no_grad()
def copy_into(target: PreTrainedModel, model: PreTrainedModel) -> None:
    """Make the weights of `target` those of a model of the same shape, sharded alike."""
    parameters = target.state_dict()
    for name, weight in merged_weights(model):
        parameters[name].copy_(weight)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's state, as this rank has it, by "number of the parameter.name"."""
    return {
        f"{number}.{name}": value
        for number, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
    }


def load_optimizer_state(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Take over the `optimizer_tensors` of an optimizer of the same parameters.

    The settings stay those of now.
    """
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, _, name = key.partition(".")
        state.setdefault(int(number), {})[name] = value
    param_groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": param_groups})


def empty_optimizer_tensors(
    optimizer: torch.optim.Optimizer, shapes: dict[str, tuple[int, ...]]
) -> dict[str, Tensor]:
    """Make room for `optimizer_tensors` of these shapes, sliced as the parameters are."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    tensors = {}
    for key, shape in shapes.items():
        parameter = parameters[int(key.partition(".")[0])]
        if shape == tuple(parameter.shape):
            tensors[key] = torch.empty_like(parameter)
        else:
            tensors[key] = torch.empty(shape)  # a count of steps
    return tensors
