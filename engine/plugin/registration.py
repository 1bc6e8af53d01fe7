"""What vLLM loads of ours in each of its processes: the entry point `foray` of the group
`vllm.general_plugins`."""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import signal
import sys

from engine.constants import TRANSFER_BACKEND

_PR_SET_PDEATHSIG = 1  # Linux, prctl(2)

NOISE = {
    # RotaryEmbedding computes its buffers, so that no checkpoint has any: they are put back as they
    # were.
    "vllm.model_executor.model_loader.reload.layerwise": "RotaryEmbedding: Failed to load weights",
    # The learner publishes float32, whatever the engine computes in.
    "vllm.model_executor.models.utils": "Attempted to load weight",
}
"""Warnings that say nothing at each update of weights: logger, beginning of the message."""


def register() -> None:
    """Make our weight transfer known to vLLM, silence its noise, and let its processes end with the
    server that started them."""
    from vllm.distributed.weight_transfer import WeightTransferEngineFactory

    try:
        WeightTransferEngineFactory.register_engine(
            TRANSFER_BACKEND, "engine.plugin.weight_transfer", "SafetensorsTransfer"
        )
    except ValueError:
        return  # vLLM may load plugins twice in a process
    for name, beginning in NOISE.items():
        logging.getLogger(name).addFilter(
            lambda record, beginning=beginning: not record.getMessage().startswith(beginning)
        )
    _die_with_parent()


def _die_with_parent() -> None:
    """vLLM's workers outlive a server that is killed by SIGKILL, with all their memory, unless the
    kernel ends them."""
    if sys.platform == "linux" and multiprocessing.parent_process() is not None:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
