"""Make what can only go wrong inside a process go wrong.

Python runs this first in every process that has its directory on PYTHONPATH.

MISFORTUNES names a directory. While there is a file in it called

    clock    `time.time` is as many seconds ahead as the file says
    nan      one row of the logits of each step of an engine is NaN

Nothing happens to a process without that variable.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import os
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

LOGITS = "vllm.model_executor.layers.logits_processor"
"""The module of vLLM whose class makes logits of hidden states."""

DIRECTORY = os.environ.get("MISFORTUNES", "")


def offset_seconds() -> float:
    """How far the clock is ahead."""
    try:
        return float(Path(DIRECTORY, "clock").read_text() or 0)
    except (OSError, ValueError):
        return 0.0


def break_clock() -> None:
    """Let `time.time` follow the file."""
    right = time.time
    time.time = lambda: right() + offset_seconds()


def break_logits(module: ModuleType) -> None:
    """Let the logits of one row be NaN while the file is there."""
    right = module.LogitsProcessor.forward

    def forward(self: Any, *arguments: Any, **named: Any) -> Any:
        logits = right(self, *arguments, **named)
        if logits is not None and len(logits) and Path(DIRECTORY, "nan").exists():
            logits[0] = float("nan")
        return logits

    module.LogitsProcessor.forward = forward


class AfterImport(importlib.abc.MetaPathFinder):
    """Calls `break_logits` once its module has been executed.

    Nobody has the class from there before.
    """

    def find_spec(self, name: str, path: object = None, target: object = None) -> Any:
        if name != LOGITS:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_break(module: ModuleType) -> None:
            execute(module)
            break_logits(module)

        spec.loader.exec_module = execute_and_break
        return spec


if DIRECTORY:
    break_clock()
    sys.meta_path.insert(0, AfterImport())
