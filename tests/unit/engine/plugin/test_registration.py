"""What our plugin of vLLM does in each of its processes."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from protocol.lifetime import dying_with_parent
from tests.fixtures import ROOT

PROGRAM = """
import ctypes
from engine.plugin.registration import allow_matrix_tiles

def is_permitted():
    permitted = ctypes.c_ulong()
    arch_prctl, get_permitted, tile_data = 158, 0x1022, 1 << 18
    assert ctypes.CDLL(None).syscall(arch_prctl, get_permitted, ctypes.byref(permitted)) == 0
    return bool(permitted.value & tile_data)

print(is_permitted())
allow_matrix_tiles()
print(is_permitted())
"""
"""Asks Linux (arch_prctl(2), x86-64) if this process may use AMX, before and after."""


@pytest.mark.slow
@pytest.mark.skipif(not torch.cpu._is_amx_tile_supported(), reason="a CPU without AMX")  # noqa: SLF001  vLLM asks it, too
def test_process_of_vllm_may_use_the_matrix_registers_of_its_cpu() -> None:
    """Else vLLM's attention in bfloat16 ends it with an illegal instruction.

    A process of its own: products in bfloat16, of other tests, ask for the registers, too.
    """
    asked = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=dying_with_parent(),
    )
    assert asked.stdout.split() == ["False", "True"]
