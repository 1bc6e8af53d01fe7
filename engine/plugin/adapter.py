"""Adapters (LoRA) in a vLLM model: those of a file take the place of the ones before.

vLLM's own route for it (`load_inplace`) is of no use here: turns in flight keep the request for the
adapter that they began with, and load its file again in each step. So the server knows one adapter
from its start on, and what that is changes in the worker, as weights do.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from vllm.lora.lora_model import LoRAModel
from vllm.lora.peft_helper import PEFTHelper

from engine.constants import ADAPTER, ADAPTER_ID
from engine.plugin.weight_file import tensors
from protocol.adapter import AdapterHeader, weight_of


def check_applicable(model: nn.Module, path: Path) -> None:
    """Raise ValueError when the model takes no adapters, or none of a weight in the file."""
    manager: Any = getattr(model, "lora_manager", None)
    if manager is None:
        raise ValueError(
            "the engine takes no adapters; start vLLM's server with --enable-lora and "
            f"--lora-modules {ADAPTER}=DIRECTORY"
        )
    for name, _ in tensors(path):
        weight = weight_of(name)
        if name_in_model(model, weight) == weight:
            raise ValueError(
                f"vLLM adds no adapter to {weight} of a {type(model).__name__}; set engine.weights "
                "to file"
            )


def name_in_model(model: nn.Module, name: str) -> str:
    """Return a weight's name where layers with adapters hold the weights one level deeper."""
    manager: Any = getattr(model, "lora_manager", None)
    layer, _, parameter = name.rpartition(".")
    if manager is None or not layer:
        return name
    parent, _, leaf = layer.rpartition(".")
    joined = [whole for whole, parts in manager.packed_modules_mapping.items() if leaf in parts]
    if any(f"{parent}.{whole}" in manager.modules for whole in (leaf, *joined)):
        return f"{layer}.base_layer.{parameter}"
    return name


def apply_adapters(model: nn.Module, path: Path, header: AdapterHeader) -> None:
    """Replace the model's adapters by those of a file."""
    manager: Any = model.lora_manager
    mapper: Any = getattr(model, "hf_to_vllm_mapper", None)
    if mapper is not None:
        mapper = mapper.get_rename_mapper()
    alpha: Any = header.alpha  # vLLM takes a fraction, but does not declare it
    loaded = LoRAModel.from_lora_tensors(
        ADAPTER_ID,
        dict(tensors(path)),
        PEFTHelper(r=header.rank, lora_alpha=alpha, target_modules=[]),
        device="cpu",
        dtype=manager.lora_config.lora_dtype,
        weights_mapper=mapper,
    )
    manager.remove_adapter(ADAPTER_ID)
    manager.add_adapter(loaded)
    manager.activate_adapter(ADAPTER_ID)
