"""Tensor parallelism with the signal tap: each request is sampled by one of the workers, its owner.

vLLM's batch-sharded sampling (vllm/v1/worker/gpu/sample/batch_shard.py) gives the owner whole rows
of logits, and sends the sampled tokens to the others. A token that the owner forces is then forced
everywhere. vLLM falls back to sampling in every worker, with a warning alone, for a model that has
no `compute_logits_local`: what is missing is added here where it is known, else refused.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig

PLAIN_HEADS = {
    "Qwen2ForCausalLM": "vllm.model_executor.models.qwen2",
    "Qwen3ForCausalLM": "vllm.model_executor.models.qwen3",
    "Qwen3MoeForCausalLM": "vllm.model_executor.models.qwen3_moe",
}
"""Models whose logits are what `logits_processor` makes of the head, and the modules they are in.

vLLM 0.32 has `compute_logits_local` for none of them.
"""


def compute_logits_local(model: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    """Compute this worker's slice of the logits, [N, V / workers], of hidden states [N, hidden]."""
    return model.logits_processor(model.lm_head, hidden_states, skip_gather=True)


def add_local_logits() -> None:
    """Give the models of PLAIN_HEADS the method that batch-sharded sampling asks for."""
    for name, module in PLAIN_HEADS.items():
        model_class = getattr(importlib.import_module(module), name)
        if not hasattr(model_class, "compute_logits_local"):
            model_class.compute_logits_local = compute_logits_local


def check_shards(vllm_config: VllmConfig) -> None:
    """Raise ValueError if an engine of several workers does not sample each request in one."""
    parallel = vllm_config.parallel_config
    if parallel.world_size == 1:
        return
    if parallel.pipeline_parallel_size > 1:
        raise ValueError(
            "the signal tap works without pipeline parallelism: start the engine without "
            "--pipeline-parallel-size, or set control.signal to stream"
        )
    if not parallel.enable_batch_sharded_sampling:
        raise ValueError(
            "the signal tap of an engine of several workers needs --enable-batch-sharded-sampling: "
            "else each samples every request, and a forced token would be forced in one alone"
        )
    from vllm.model_executor.model_loader.utils import get_model_cls

    model_class = get_model_cls(vllm_config.model_config)
    if not hasattr(model_class, "compute_logits_local"):
        raise ValueError(
            "the signal tap of an engine of several workers needs compute_logits_local, which "
            f"vLLM's {model_class.__name__} lacks: start the engine with one worker, or set "
            "control.signal to stream"
        )
