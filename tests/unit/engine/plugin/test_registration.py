"""What our plugin of vLLM does in each of its processes."""

from __future__ import annotations

import ctypes

import pytest
import torch

from engine.plugin.registration import allow_matrix_tiles

ARCH_PRCTL = 158
"""Linux on x86-64: arch_prctl(2)."""
GET_PERMITTED = 0x1022
TILE_DATA = 1 << 18


@pytest.mark.skipif(not torch.cpu._is_amx_tile_supported(), reason="a CPU without AMX")  # noqa: SLF001  vLLM asks it, too
def test_process_of_vllm_may_use_the_matrix_registers_of_its_cpu() -> None:
    """Else vLLM's attention in bfloat16 ends it with an illegal instruction."""
    allow_matrix_tiles()
    permitted = ctypes.c_ulong()
    assert ctypes.CDLL(None).syscall(ARCH_PRCTL, GET_PERMITTED, ctypes.byref(permitted)) == 0
    assert permitted.value & TILE_DATA
