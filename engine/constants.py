"""Names on which the controller's side and the engine's side agree. Imports nothing."""

TRANSFER_BACKEND = "foray_safetensors"
"""Our weight transfer backend, in vLLM's registry."""

PLUGIN = "foray"
"""Our entry point in the group `vllm.general_plugins` (pyproject.toml)."""

SIGNAL_TAP = "engine.plugin.signal_tap:SignalTap"
"""Our logits processor for vLLM's V1 model runner, as --logits-processors wants it."""

SIGNAL_TAP_V2 = "engine.plugin.signal_tap_v2:SignalTapV2"
"""Our logits processor for vLLM's V2 model runner, the default on GPUs."""

RUNNER_VARIABLE = "VLLM_USE_V2_MODEL_RUNNER"
"""vLLM's environment variable: "1" asks for the V2 model runner, "0" for V1."""

SHARDED_SAMPLING_VARIABLE = "FORAY_SHARDED_SAMPLING"
"""Environment variable that is set where the engine has several workers.

Each of them samples a part of the requests.
"""

TURN_ID_KEY = "foray_turn"
"""Key of the turn id in a request's `extra_args`: its presence makes the turn watched."""

RULE_KEY = "foray_rule"
"""Key of the rule (JSON of a RuleSpec) in a request's `extra_args`.

The engine carries it out by itself.
"""

MAX_PATTERN_TOKENS = 16
"""Tokens of the longest pattern whose repetition is looked for."""

TAP_ENDPOINT_VARIABLE = "FORAY_TAP_ENDPOINT"
"""Environment variable: where the controller's ROUTER socket is bound.

Absent: the processor does nothing.
"""

TAP_TOP_J_VARIABLE = "FORAY_TAP_TOP_J"
"""Environment variable: tokens whose mean log-prob is the confidence."""

MIDDLEWARE = "engine.plugin.auth.BearerAuthMiddleware"
"""Our middleware, as vLLM's --middleware wants it."""

ENGINE_KEY_VARIABLE = "FORAY_ENGINE_KEY"
"""Environment variable: what whoever asks the engine must know."""

RUN_HEADER = "X-Foray-Run"
"""Header of each request: the run that makes it, whose the engine is then."""

CLAIM_ROUTE = "/foray/claim"
"""Route of our middleware: DELETE ends the claim of the run that RUN names."""

CHECK_ROUTE = "/foray/check_weights"
"""Route of our middleware: POST hashes a file of weights, while the engine generates."""

GATED_HEADER = "X-Foray-Gate"
"""Header of each answer that went through our middleware."""

ALIVE_HEADER = "X-Foray-Alive"
"""Header of a streamed answer that never stays silent: the seconds between two signs of life."""

KEYS_VARIABLE = "FORAY_KEYS"
"""Environment variable that names the directory of the run's keys (protocol/security.py).

They are for the connection to the controller, which is open without them.
"""

NCCL_PACKING = {"packed": True, "packed_buffer_size_bytes": 1 << 28, "packed_num_buffers": 2}
"""How vLLM's NCCL transfer joins tensors into buffers (of so many bytes).

Learner and workers must cut alike, so both are told.
"""

UNKNOWN_VERSION = -1
"""Weights that no update has put there: those the engine was started with."""


def engine_request_id(turn_id: str) -> str:
    """Return vLLM's name for the request of /inference/v1/generate that we call `turn_id`.

    Aborting the bare id is a silent 200.
    """
    return f"generate-tokens-{turn_id}"
