"""Gradients of one batch, computed by several processes on one machine, each on a part of it.

Threads of Python that launch operations wait for each other's lock; processes do not. Parameters and gradients are in shared memory, so
that a step sends nothing but its samples. How little this gains over torch's own threads is in docs/performance.md.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Sequence
from multiprocessing.connection import Connection

import torch
from torch import Tensor, multiprocessing
from transformers import PreTrainedModel

from learner.batching import Sample, microbatches
from learner.policy import log_probs

MICROBATCH_TOKENS = 2048
"""Small enough for the activations of a small model to stay in the processor's cache."""


class ParallelGradients:
    """Sets a model's gradients to those of the mean cross-entropy of a batch's response tokens.

    A context manager: the helper processes end with it, or with their parent. The model's parameters are moved to shared memory.
    """

    def __init__(self, model: PreTrainedModel, processes: int) -> None:
        self._model = model
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._threads_before = torch.get_num_threads()
        self._helpers = []
        if processes > 1:
            model.share_memory()
            torch.set_num_threads(1)
            context = multiprocessing.get_context("spawn")  # a fork would inherit locks that threads of this process hold
            self._helpers = [_Helper(context, model, self._parameters) for _ in range(processes - 1)]

    @property
    def pids(self) -> list[int]:
        """Of the helper processes."""
        return [helper.pid for helper in self._helpers]

    def __enter__(self) -> ParallelGradients:
        return self

    def __exit__(self, *exception: object) -> None:
        for helper in self._helpers:
            helper.close()
        torch.set_num_threads(self._threads_before)

    def __call__(self, samples: Sequence[Sample]) -> float:
        """Set the gradients; returns the mean cross-entropy, in nats. RuntimeError if a helper has died."""
        denominator = sum(sample.trained_tokens for sample in samples)
        by_length = sorted(samples, key=lambda sample: sample.length)
        own, *others = (by_length[i :: len(self._helpers) + 1] for i in range(len(self._helpers) + 1))
        for helper, part in zip(self._helpers, others, strict=True):
            helper.start(part, denominator)
        loss, gradients = _gradients(self._model, self._parameters, own, denominator)
        for helper in self._helpers:
            loss += helper.finish()
            for gradient, theirs in zip(gradients, helper.gradients, strict=True):
                gradient += theirs
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient
        return loss


class _Helper:
    """A process that computes gradients into `gradients`, shared tensors like the parameters."""

    def __init__(self, context: multiprocessing.SpawnContext, model: PreTrainedModel, parameters: Sequence[Tensor]) -> None:
        self.gradients = [torch.zeros_like(p).share_memory_() for p in parameters]
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, model, self.gradients), daemon=True, name="warm-start")
        self._process.start()
        theirs.close()
        self.pid: int = self._process.pid

    def start(self, samples: Sequence[Sample], denominator: int) -> None:
        with contextlib.suppress(OSError):  # it is gone, which `finish` says
            self._connection.send((samples, denominator))

    def finish(self) -> float:
        try:
            return self._connection.recv()
        except (EOFError, ConnectionError):
            raise RuntimeError("a process of the warm start died: see above for its last words, or set warm_start.processes to 1") from None

    def close(self) -> None:
        self._connection.close()
        self._process.join()


def _serve(connection: Connection, model: PreTrainedModel, gradients: Sequence[Tensor]) -> None:
    """The main function of a helper: until the other end closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    torch.set_num_threads(1)
    parameters = [p for p in model.parameters() if p.requires_grad]
    while True:
        try:
            samples, denominator = connection.recv()
        except (EOFError, ConnectionError):
            return
        loss, computed = _gradients(model, parameters, samples, denominator)
        for shared, gradient in zip(gradients, computed, strict=True):
            shared.copy_(gradient)
        connection.send(loss)


def _gradients(
    model: PreTrainedModel, parameters: Sequence[Tensor], samples: Sequence[Sample], denominator: int
) -> tuple[float, tuple[Tensor, ...]]:
    """Of the samples' share of the loss."""
    if not samples:
        return 0.0, tuple(torch.zeros_like(p) for p in parameters)
    loss = torch.zeros((), device=parameters[0].device)
    for batch in microbatches(samples, MICROBATCH_TOKENS):
        log_pi, _ = log_probs(model, batch, temperature=1.0)
        loss = loss - log_pi.sum() / denominator
    return float(loss.detach()), torch.autograd.grad(loss, parameters)
