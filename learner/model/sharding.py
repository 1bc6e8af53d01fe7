"""The policy as one module, whose weights may be sharded between ranks.

Sharding is FSDP2 (torch.distributed.fsdp.fully_shard). Each rank holds a slice of every weight, of
its gradient and of the optimizer's moments. A layer's weights are gathered for the time of its
computation. Gradients are summed over the ranks when they are sliced.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from learner.data.batching import MicroBatch
from learner.model.lora import adapters, plain_name
from learner.model.policy import final_hidden, log_probs
from learner.ranks import Ranks


class Policy(nn.Module):
    """A causal language model by what is asked of it here.

    With several ranks, all must ask for the same at the same time.
    """

    def __init__(self, model: PreTrainedModel, ranks: Ranks, precision: str = "float32") -> None:
        super().__init__()
        self.model = model
        self._precision = precision
        if ranks.size > 1:
            for layer in _layers_of(model):
                fully_shard(layer)
            fully_shard(self)
            register_fsdp_forward_method(self, "state_features")

    def forward(
        self, batch: MicroBatch, temperature: float, entropy_gradient: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Compute log-probs and entropies, as `learner.model.policy.log_probs` does."""
        return log_probs(
            self.model,
            batch,
            temperature,
            entropy_gradient=entropy_gradient,
            precision=self._precision,
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
                self.model, torch.from_numpy(tokens).to(device), rows, ends, self._precision
            )


def _layers_of(model: PreTrainedModel) -> nn.ModuleList:
    layers = getattr(model.base_model, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise ValueError(
            f"learner.ranks: the layers of a {type(model).__name__} are not where they are looked "
            "for; give 1"
        )
    return layers


def full_tensor(tensor: Tensor) -> Tensor:
    """Return a tensor in full, from all ranks' slices of it. All ranks must ask."""
    if isinstance(tensor, DTensor):
        return tensor.full_tensor()
    return tensor


def full_state_dict(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Give the weights in full, one after another, by their names in a checkpoint.

    Those that are another's (a tied language-model head) come once. Adapters are merged into what
    they belong to.
    """
    tied = None
    if model.config.tie_word_embeddings:
        tied = "lm_head.weight"
    adapter_of = dict(adapters(model))
    for stored, tensor in model.state_dict().items():
        name = plain_name(stored)
        if name in (tied, None):
            continue
        weight = full_tensor(tensor.detach())
        adapter = adapter_of.get(name)
        if adapter is not None:
            product = full_tensor(adapter.b.detach()) @ full_tensor(adapter.a.detach())
            weight = weight + adapter.scale * product
        yield name, weight


def set_weights(model: PreTrainedModel, weights: dict[str, Tensor]) -> None:
    """Take over the `full_state_dict` of another model of the same shape.

    It may be sharded otherwise.
    """
    parameters = model.state_dict()
    slices = {name: _slice_like(weight, parameters[name]) for name, weight in weights.items()}
    model.load_state_dict(slices, strict=False)  # a tied head is not there


def full_optimizer_state(
    optimizer: torch.optim.Optimizer,
) -> Iterator[tuple[tuple[int, str], Tensor]]:
    """Give the optimizer's state in full, one tensor after another.

    Each comes with the number of its parameter and the name of the moment.
    """
    for number, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            yield (number, name), full_tensor(value)


def load_optimizer_state(
    optimizer: torch.optim.Optimizer, moments: dict[tuple[int, str], Tensor]
) -> None:
    """Take over the `full_optimizer_state` of an optimizer of the same parameters.

    It may be of another number of ranks; the settings stay those of now.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    slices: dict[int, dict[str, Tensor]] = {number: {} for number, _ in moments}
    for (number, name), value in moments.items():
        slices[number][name] = _slice_like(value, parameters[number])
    param_groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": slices, "param_groups": param_groups})


def _slice_like(value: Tensor, parameter: Tensor) -> Tensor:
    """Return this rank's slice of what belongs to `parameter`; a count of steps is no slice."""
    if not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value
    return distribute_tensor(
        value.to(parameter.device), parameter.device_mesh, parameter.placements
    )
