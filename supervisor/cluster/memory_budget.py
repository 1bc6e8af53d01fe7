"""Memory that training and engines take of a device, from the model's shape alone.

Weights, gradients, moments and keys and values are arithmetic. Activations are what autograd keeps
(tests/unit/supervisor/cluster/test_memory_budget.py compares them with a forward pass). What
libraries take for themselves is an estimate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from supervisor.cluster.model_shape import ModelShape

GIB = 2**30

LEARNER_RUNTIME_BYTES = 2 * GIB
"""CUDA's context, workspaces of libraries, and fragmentation, of a rank of the learner (est.)."""

ENGINE_RUNTIME_BYTES = 3 * GIB
"""CUDA's context, graphs and workspaces of an engine's worker (est.)."""

ENGINE_ASLEEP_BYTES = 2 * GIB
"""Bytes that an engine that sleeps keeps of its device: CUDA's context and graphs (est.)."""

STEP_TOKENS = 8192
"""Tokens of an engine's step: the largest of vLLM's defaults for a server."""

HEAD_LOGITS = 2**26
"""Logits that the learner's head has at a time (learner/model/head.py)."""

HEAD_COPIES = 3
"""Tensors in float32 of as many logits, while the head's gradient is computed."""

SAMPLER_COPIES = 3
"""Tensors in float32 of a row of logits for each turn, while an engine samples."""

MOMENT_BYTES = 8
MASTER_BYTES = 4

LAYER_BYTES = {"bfloat16": 2, "float32": 4}
"""Bytes of a number inside the layers, by learner.precision."""


class Part(NamedTuple):
    """A part of a process's memory on one device."""

    name: str
    bytes: int
    is_lasting: bool
    """True if it stays between two updates."""
    is_exact: bool = False
    """True for arithmetic, false for an estimate."""


class LearnerLoad(NamedTuple):
    """Load of a rank of the learner: what it holds and computes."""

    ranks: int
    tokens: int
    """Tokens of a forward pass."""
    precision: str
    """learner.precision: that of the products inside the layers."""
    checkpoints_layers: bool
    lora_rank: int
    has_reference: bool
    """True if another copy of the weights is kept to measure the distance from."""
    trains: bool = True
    """False if it only has the weights that engines are to run, for an evaluation."""


class EngineLoad(NamedTuple):
    """Load of a worker of an engine, but for keys and values."""

    workers: int
    """Its tensor-parallel size."""
    weight_bytes: int
    """Bytes of an element of its weights."""
    sequences: int
    """Turns that it generates at once."""


def total(parts: Sequence[Part]) -> int:
    """Sum up parts, in bytes."""
    return sum(part.bytes for part in parts)


def lasting(parts: Sequence[Part]) -> int:
    """Sum up the parts that stay between two updates, in bytes."""
    return sum(part.bytes for part in parts if part.is_lasting)


def exact(parts: Sequence[Part]) -> int:
    """Sum up the parts that are arithmetic, in bytes."""
    return sum(part.bytes for part in parts if part.is_exact)


def learner_parts(shape: ModelShape, load: LearnerLoad) -> list[Part]:
    """List what one rank of the learner takes of its device; parts of nothing are left out.

    Weights, gradients and moments are float32 and divided between the ranks.
    """
    weights = shape.weights()
    if not load.trains:
        held = Part("weights", MASTER_BYTES * weights // load.ranks, True, is_exact=True)
        return [held, Part("runtime", LEARNER_RUNTIME_BYTES, True)]
    trained = weights
    if load.lora_rank:
        trained = shape.adapter_weights(load.lora_rank)
        weights += trained
    reference = shape.weights() * load.has_reference
    parts = [
        Part("weights", MASTER_BYTES * weights // load.ranks, True, is_exact=True),
        Part("gradients", MASTER_BYTES * trained // load.ranks, False, is_exact=True),
        Part("optimizer", MOMENT_BYTES * trained // load.ranks, True, is_exact=True),
        Part("reference", MASTER_BYTES * reference // load.ranks, True, is_exact=True),
        Part("activations", activation_bytes(shape, load), False),
        Part("head", _head_bytes(shape, load), False),
        Part("gathered", _gathered_bytes(shape, load), False),
        Part("runtime", LEARNER_RUNTIME_BYTES, True),
    ]
    return [part for part in parts if part.bytes]


def activation_bytes(shape: ModelShape, load: LearnerLoad) -> int:
    """Bytes that autograd keeps of the layers for a forward pass of `load.tokens` tokens."""
    in_layer = layer_activation_bytes(shape, load.precision)
    if not load.checkpoints_layers:
        return load.tokens * shape.layers * in_layer
    # Of each layer what goes in; and one layer as a whole, which is computed again.
    inputs = LAYER_BYTES[load.precision] * shape.hidden
    return load.tokens * (shape.layers * inputs + in_layer)


def layer_activation_bytes(shape: ModelShape, precision: str) -> int:
    """Bytes that autograd keeps of one layer for each token."""
    heads = shape.query_width + shape.kv_width
    if precision == "bfloat16":
        return 20 * shape.hidden + 12 * heads + 8 * shape.active_mlp
    return 24 * shape.hidden + 16 * heads + 16 * shape.active_mlp


def _head_bytes(shape: ModelShape, load: LearnerLoad) -> int:
    """Bytes of a chunk of logits, and of the gradient of the head's whole matrix."""
    logits = min(HEAD_LOGITS, load.tokens * shape.vocabulary)
    gradient = shape.vocabulary * shape.hidden
    if load.lora_rank:
        gradient = 0
    return 4 * (HEAD_COPIES * logits + gradient)


def _gathered_bytes(shape: ModelShape, load: LearnerLoad) -> int:
    """Bytes of weights that a rank has in full while it computes with them.

    They are the embedding, the head, and two layers in the layers' precision: one is fetched while
    another is used. One layer's gradient is there in that precision, and to be summed in float32.
    """
    in_layers = LAYER_BYTES[load.precision]
    of_layer = (3 * in_layers + MASTER_BYTES) * shape.layer_weights()
    return MASTER_BYTES * shape.embedding_weights() + of_layer


def engine_parts(shape: ModelShape, load: EngineLoad) -> list[Part]:
    """List what one worker of an engine takes of its device beside keys and values."""
    step_elements = 4 * shape.hidden + 3 * shape.active_mlp + shape.query_width + 2 * shape.kv_width
    logits = load.sequences * shape.vocabulary
    return [
        Part("weights", load.weight_bytes * shape.weights() // load.workers, True, is_exact=True),
        Part("activations", 2 * STEP_TOKENS * step_elements // load.workers, True),
        Part("head", SAMPLER_COPIES * 4 * logits, True),
        Part("runtime", ENGINE_RUNTIME_BYTES, True),
    ]


def kv_bytes(shape: ModelShape, tokens: int, workers: int = 1) -> int:
    """Bytes of the keys and values of so many tokens on one of an engine's workers, in bfloat16.

    Workers share the heads; with more workers than heads, each has one.
    """
    heads = max(1, shape.kv_heads // workers)
    return tokens * shape.kv_bytes_per_token() * heads // shape.kv_heads
