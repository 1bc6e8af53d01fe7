"""The policy as one module, whose weights may be sharded between ranks (FSDP2: torch.distributed.fsdp.fully_shard).

Each rank holds a slice of every weight, of its gradient and of the optimizer's moments; a layer's weights are gathered for the time of its
computation. Gradients are summed over the ranks when they are sliced.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from learner.batching import MicroBatch
from learner.lora import adapters, plain_name
from learner.policy import final_hidden, log_probs
from learner.ranks import Ranks


class Policy(nn.Module):
    """A causal language model by what is asked of it here. With several ranks, all must ask for the same at the same time."""

    def __init__(self, model: PreTrainedModel, ranks: Ranks, precision: str = "float32") -> None:
        super().__init__()
        self.model = model
        self._precision = precision
        if ranks.size > 1:
            for layer in model.model.layers:
                fully_shard(layer)
            fully_shard(self)
            register_fsdp_forward_method(self, "state_features")

    def forward(self, batch: MicroBatch, temperature: float, entropy_gradient: bool = False) -> tuple[Tensor, Tensor]:
        """As `learner.policy.log_probs`."""
        return log_probs(self.model, batch, temperature, entropy_gradient=entropy_gradient, precision=self._precision)

    def state_features(self, prompts: Sequence[np.ndarray]) -> Tensor:
        """The last hidden state [B, hidden] at the last token of each prompt, without gradient."""
        tokens = np.zeros((len(prompts), max(map(len, prompts))), dtype=np.int64)
        for row, prompt in zip(tokens, prompts, strict=True):
            row[: len(prompt)] = prompt
        device = next(self.model.parameters()).device
        rows = torch.arange(len(prompts), device=device)
        ends = torch.tensor([len(prompt) - 1 for prompt in prompts], device=device)
        with torch.no_grad():
            return final_hidden(self.model, torch.from_numpy(tokens).to(device), rows, ends, self._precision)


def whole(tensor: Tensor) -> Tensor:
    """A tensor in full, from all ranks' slices of it. All ranks must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """The weights in full, by their names in a checkpoint; those that are another's (a tied language-model head) once. Adapters are merged
    into what they belong to."""
    tied = "lm_head.weight" if model.config.tie_word_embeddings else None
    named = ((plain_name(name), tensor) for name, tensor in model.state_dict().items())
    weights = {name: whole(tensor.detach()) for name, tensor in named if name not in (tied, None)}
    for name, adapter in adapters(model):
        weights[name] = weights[name] + adapter.scale * (whole(adapter.b.detach()) @ whole(adapter.a.detach()))
    return weights


def set_weights(model: PreTrainedModel, weights: dict[str, Tensor]) -> None:
    """Take over what `whole_weights` returned of another model of the same shape, perhaps sharded otherwise."""
    own = model.state_dict()
    model.load_state_dict({name: _like(weight, own[name]) for name, weight in weights.items()}, strict=False)  # a tied head is not there


def whole_moments(optimizer: torch.optim.Optimizer) -> dict[int, dict[str, Tensor]]:
    """The optimizer's state by the number of the parameter, in full."""
    return {number: {name: whole(value) for name, value in state.items()} for number, state in optimizer.state_dict()["state"].items()}


def load_moments(optimizer: torch.optim.Optimizer, moments: dict[int, dict[str, Tensor]]) -> None:
    """What `whole_moments` returned, perhaps on another number of ranks; the settings stay those of now."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    sliced = {number: {name: _like(value, parameters[number]) for name, value in state.items()} for number, state in moments.items()}
    optimizer.load_state_dict({"state": sliced, "param_groups": optimizer.state_dict()["param_groups"]})


def _like(value: Tensor, parameter: Tensor) -> Tensor:
    """This rank's slice of what belongs to `parameter`; a count of steps is no slice."""
    if not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value
    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
