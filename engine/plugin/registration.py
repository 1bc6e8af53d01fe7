"""Our plugin of vLLM, which loads it in each of its processes.

It is the entry point `foray` of the group `vllm.general_plugins`.
"""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # Linux, prctl(2)

NOISE = {
    "vllm.model_executor.model_loader.reload.layerwise": (
        # RotaryEmbedding computes its buffers, so that no checkpoint has any: they are put back as
        # they were.
        "RotaryEmbedding: Failed to load weights",
        # A head that shares the embedding's weights has none of its own in a checkpoint. What an
        # engine computes is checked against the learner's weights (engine.verify_every).
        "ParallelLMHead: Failed to load weights",
    ),
    # The learner publishes float32, whatever the engine computes in.
    "vllm.model_executor.models.utils": ("Attempted to load weight",),
}
"""Warnings at each update of weights that mean nothing: logger, beginnings of the message."""


def register() -> None:
    """Make our weight transfer known to vLLM, and prepare its processes (end, registers).

    Nothing is done in a vLLM that no run of ours started: it does not find our modules.
    """
    try:
        from engine.constants import SHARDED_SAMPLING_VARIABLE, TRANSFER_BACKEND
    except ImportError:
        return
    from vllm.distributed.weight_transfer import WeightTransferEngineFactory

    try:
        WeightTransferEngineFactory.register_engine(
            TRANSFER_BACKEND, "engine.plugin.weight_transfer", "SafetensorsTransfer"
        )
    except ValueError:
        return  # vLLM may load plugins twice in a process
    for name, beginnings in NOISE.items():
        logging.getLogger(name).addFilter(
            lambda record, beginnings=beginnings: not record.getMessage().startswith(beginnings)
        )
    if os.environ.get(SHARDED_SAMPLING_VARIABLE):
        from engine.plugin.sharded_sampling import add_local_logits

        add_local_logits()
    _die_with_parent()
    allow_matrix_tiles()


def allow_matrix_tiles() -> None:
    """Ask the kernel for AMX, the matrix registers of some CPUs.

    vLLM's attention in bfloat16 takes them wherever the CPU has them, and a process that has not
    asked dies of an illegal instruction. Its matrix products ask, if they are large enough.
    """
    from torch.cpu import _init_amx, _is_amx_tile_supported

    if _is_amx_tile_supported():
        _init_amx()


def _die_with_parent() -> None:
    """Have the kernel end a worker of vLLM when its server ends.

    It would outlive a server that is killed by SIGKILL, with all its memory.
    """
    if sys.platform == "linux" and multiprocessing.parent_process() is not None:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
