"""The policy as one module, whose weights may be sharded between ranks (FSDP2:
torch.distributed.fsdp.fully_shard).

Each rank holds a slice of every weight, of its gradient and of the optimizer's moments; a layer's
weights are gathered for the time of its computation. Gradients are summed over the ranks when they
are sliced.
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
            if not isinstance(layers := getattr(model.base_model, "layers", None), nn.ModuleList):
                raise ValueError(
                    f"learner.ranks: the layers of a {type(model).__name__} are not where they "
                    "are looked for; give 1"
                )
            for layer in layers:
                fully_shard(layer)
            fully_shard(self)
            register_fsdp_forward_method(self, "state_features")

    def forward(
        self, batch: MicroBatch, temperature: float, entropy_gradient: bool = False
    ) -> tuple[Tensor, Tensor]:
        """As `learner.model.policy.log_probs`."""
        return log_probs(
            self.model,
            batch,
            temperature,
            entropy_gradient=entropy_gradient,
            precision=self._precision,
        )

    def state_features(self, prompts: Sequence[np.ndarray]) -> Tensor:
        """The last hidden state [B, hidden] at the last token of each prompt, without gradient."""
        tokens = np.zeros((len(prompts), max(map(len, prompts))), dtype=np.int64)
        for row, prompt in zip(tokens, prompts, strict=True):
            row[: len(prompt)] = prompt
        device = next(self.model.parameters()).device
        rows = torch.arange(len(prompts), device=device)
        ends = torch.tensor([len(prompt) - 1 for prompt in prompts], device=device)
        with torch.no_grad():
            return final_hidden(
                self.model, torch.from_numpy(tokens).to(device), rows, ends, self._precision
            )


def whole(tensor: Tensor) -> Tensor:
    """A tensor in full, from all ranks' slices of it. All ranks must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def full_state_dict(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """The weights in full, one after another, by their names in a checkpoint; those that are
    another's (a tied language-model head) once. Adapters are merged into what they belong to."""
    tied = "lm_head.weight" if model.config.tie_word_embeddings else None
    added = dict(adapters(model))
    for stored, tensor in model.state_dict().items():
        name = plain_name(stored)
        if name in (tied, None):
            continue
        weight = whole(tensor.detach())
        if adapter := added.get(name):
            weight = weight + adapter.scale * (
                whole(adapter.b.detach()) @ whole(adapter.a.detach())
            )
        yield name, weight


def set_weights(model: PreTrainedModel, weights: dict[str, Tensor]) -> None:
    """Take over the `full_state_dict` of another model of the same shape, perhaps sharded
    otherwise."""
    own = model.state_dict()
    model.load_state_dict(
        {name: _like(weight, own[name]) for name, weight in weights.items()}, strict=False
    )  # a tied head is not there


def whole_moments(optimizer: torch.optim.Optimizer) -> Iterator[tuple[tuple[int, str], Tensor]]:
    """The optimizer's state in full, one tensor after another, by the number of the parameter and
    the name of the moment."""
    for number, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            yield (number, name), whole(value)


def load_moments(optimizer: torch.optim.Optimizer, moments: dict[tuple[int, str], Tensor]) -> None:
    """The `whole_moments` of an optimizer of the same parameters, perhaps on another number of
    ranks; the settings stay those of now."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    sliced: dict[int, dict[str, Tensor]] = {number: {} for number, _ in moments}
    for (number, name), value in moments.items():
        sliced[number][name] = _like(value, parameters[number])
    optimizer.load_state_dict(
        {"state": sliced, "param_groups": optimizer.state_dict()["param_groups"]}
    )


def _like(value: Tensor, parameter: Tensor) -> Tensor:
    """This rank's slice of what belongs to `parameter`; a count of steps is no slice."""
    if not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value
    return distribute_tensor(
        value.to(parameter.device), parameter.device_mesh, parameter.placements
    )
