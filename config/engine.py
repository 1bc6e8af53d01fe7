"""Settings of the engines and of what they sample."""

from __future__ import annotations

from typing import Annotated, Literal

from config.section import Section, says


class EngineSection(Section, frozen=True):
    """How many engines there are, on which hardware, and how they get weights."""

    count: Annotated[
        int, says("Engines to start here; a turn goes to the one with the fewest turns", ge=1)
    ] = 1
    urls: Annotated[
        list[str], says("Running vLLM servers with our plugin, instead of engines started here")
    ] = []
    port: Annotated[
        int,
        says(
            "Port of the first engine we start, the next ones have the next; 0: any free ones",
            ge=0,
            le=65535,
        ),
    ] = 0
    devices: Annotated[
        list[str],
        says(
            "GPU: the GPUs of each engine, in their order, as this machine shows and counts them "
            "from 0; empty: those after the learner's"
        ),
    ] = []
    dtype: Annotated[
        Literal["bfloat16", "float32", "auto"],
        says("Precision of the engine; auto: bfloat16 where the hardware computes with it"),
    ] = "auto"
    max_model_len: Annotated[int, says("Tokens of prompt and response together", ge=64)] = 4096
    max_sequences: Annotated[
        int,
        says(
            "Turns that an engine generates at once; 0: as many as the KV cache holds at "
            "max_model_len, at most 256 (CPU: 64)",
            ge=0,
        ),
    ] = 0
    kv_cache_gb: Annotated[
        float,
        says(
            "Memory for the KV cache, in GiB; 0: what gpu_memory_fraction leaves, or what the "
            "learner leaves on a GPU that they share (CPU: 1)",
            ge=0,
        ),
    ] = 0.0
    gpu_memory_fraction: Annotated[
        float,
        says("GPU: share of the memory for an engine that has its GPU to itself", gt=0, le=1),
    ] = 0.9
    sleep: Annotated[
        Literal["auto", "always", "never"],
        says(
            "Engines give up the memory of their GPU while an update is computed; auto: where "
            "they share one with the learner that does not hold both"
        ),
    ] = "auto"
    threads: Annotated[
        int, says("CPU: cores the engine's worker computes on; 0: vLLM chooses", ge=0)
    ] = 1
    start_seconds: Annotated[float, says("Longest wait until the engine answers", gt=0)] = 180.0
    update_seconds: Annotated[
        float,
        says(
            "Deadline of one weight update, retries included; a second more for each 200 MB of "
            "weights",
            gt=0,
        ),
    ] = 60.0
    progress_timeout_s: Annotated[
        float,
        says(
            "Longest wait for progress of a turn, weight updates included; then it is sampled "
            "again, by another engine if there is one",
            gt=0,
        ),
    ] = 120.0
    verify_every: Annotated[
        int,
        says("Updates between checks of the engine's weight checksums; the first is checked", ge=1),
    ] = 20
    weights: Annotated[
        Literal["file", "nccl"],
        says(
            "Way of new weights to the engine: a file, or vLLM's NCCL transfer between GPUs "
            "(docs/reference/engine.md)"
        ),
    ] = "file"
    extra_args: Annotated[list[str], says("Further arguments for vLLM's server, as they are")] = []


class SamplingSection(Section, frozen=True):
    """How the policy is sampled while it explores."""

    temperature: Annotated[float, says("Temperature of the policy while it explores", gt=0)] = 1.0
    max_tokens: Annotated[int, says("Response budget of a turn", ge=1)] = 512
    per_request_seeds: Annotated[
        bool,
        says(
            "Give every response a seed of its own; repeatable where the engine computes each "
            "alone, and slower"
        ),
    ] = False
