"""A policy that no rank ever has in full: built without weights, sharded, then read slice by slice.

model = build_skeleton(directory, ranks)       # on the meta device
Policy(model, ranks, precision)                # sharded, then filled by `fill_weights`
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.utils.logging import get_verbosity, set_verbosity, set_verbosity_error

from learner.model.lora import plain_name
from learner.model.policy import attention_of, keep_no_activations, load_checked, read_config
from learner.ranks import Ranks


def build_skeleton(
    directory: Path, ranks: Ranks, *, gradient_checkpointing: bool = False
) -> PreTrainedModel:
    """Build what `load_policy` loads, without its weights: they are on the meta device.

    Rank 0 chooses the attention by the model's first layers. All ranks must ask. ValueError, on all
    of them, if `log_probs` would not be those of the model.
    """
    attention = ranks.on_rank_0(lambda: _choose_attention(directory))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            read_config(directory), dtype=torch.float32, attn_implementation=attention
        ).train()
    if gradient_checkpointing:
        keep_no_activations(model)
    return model


def fill_weights(model: PreTrainedModel, ranks: Ranks) -> None:
    """Read the weights of a sharded skeleton from the directory that it was built from.

    Each rank reads its own slices, if the directory's tensors have the model's names. Otherwise
    (experts that are fused, files that are not safetensors) rank 0 loads the model as transformers
    does, and deals the slices. What has no weights in the directory (adapters) holds anything.
    """
    directory = Path(str(model.config.name_or_path))
    model.to_empty(device=ranks.device)
    model.tie_weights()
    _restore_buffers(model)
    weights = _weights_by_stored_name(model)
    reader = HuggingFaceStorageReader(str(directory))
    if weights.keys() <= reader.read_metadata().state_dict_metadata.keys():
        load(dict(weights), storage_reader=reader)
    else:
        _deal_weights(directory, weights, ranks)


def _choose_attention(directory: Path) -> str:
    config = read_config(directory)
    _keep_first_layers(config)
    with _only_errors():  # it would tell of all layers that are left out
        return attention_of(load_checked(directory, config)) or "eager"


def _keep_first_layers(config: PreTrainedConfig) -> None:
    """Shorten a model to its first layers, two at least, among which are all kinds of them."""
    text = config.get_text_config()
    layers = text.num_hidden_layers
    kinds = getattr(text, "layer_types", None) or []
    kept = max([2, *(1 + kinds.index(kind) for kind in kinds)])
    if kept >= layers:
        return
    text.num_hidden_layers = kept
    for name, value in list(vars(text).items()):
        if isinstance(value, list) and len(value) == layers:  # one entry a layer
            setattr(text, name, copy.copy(value[:kept]))


@contextlib.contextmanager
def _only_errors() -> Iterator[None]:
    """Let transformers log errors alone while inside."""
    verbosity = get_verbosity()
    set_verbosity_error()
    try:
        yield
    finally:
        set_verbosity(verbosity)


@torch.no_grad()
def _restore_buffers(model: PreTrainedModel) -> None:
    """Compute what is no weight and in no file: the frequencies of rotary embeddings.

    It is what transformers does itself when it loads a model.
    """
    untyped: Any = model  # its own types take a checker through all models, ten seconds
    for module in model.modules():
        if module._non_persistent_buffers_set:  # noqa: SLF001
            untyped._init_weights(module)  # noqa: SLF001


def _weights_by_stored_name(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return the weights, but for adapters and tied ones, by their names in a checkpoint."""
    tied = None
    if model.config.tie_word_embeddings:
        tied = "lm_head.weight"
    named = ((plain_name(stored), tensor) for stored, tensor in model.state_dict().items())
    return {name: tensor.detach() for name, tensor in named if name not in (None, tied)}


@torch.no_grad()
def _deal_weights(directory: Path, weights: dict[str, Tensor], ranks: Ranks) -> None:
    """Load the model on rank 0, in the precision of its files, and deal slices of its weights."""
    loaded: dict[str, Tensor] = {}
    if not ranks.rank:
        loaded = AutoModelForCausalLM.from_pretrained(directory, dtype="auto").state_dict()
    for name, weight in weights.items():
        whole = torch.empty(weight.shape, dtype=weight.dtype, device=ranks.device)
        if not ranks.rank:
            whole.copy_(loaded.pop(name))
        weight.copy_(_scatter_like(whole, weight))


def _scatter_like(whole: Tensor, weight: Tensor) -> Tensor:
    """Return this rank's slice of a tensor that rank 0 has."""
    if not isinstance(weight, DTensor):
        return whole
    return distribute_tensor(whole, weight.device_mesh, weight.placements)
