"""Costs that benchmarks.scaling_model is fed with.

They are those of an engine measured alone, and of the processes of a run measured while it goes on.
"""

from __future__ import annotations

import subprocess
import sys
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import msgspec
import numpy as np
import psutil
from rich.console import Console

from benchmarks.control import engine_of, speed, tapped
from benchmarks.scaling_model import Costs, Work
from benchmarks.studies import ROOT
from config import Job
from engine.plugin.auth import bearer
from learner.data.episode_log import read_records
from protocol.arrays import INT32
from protocol.codec import decode
from protocol.lifetime import dying_with_parent
from protocol.messages import Trajectory

STREAMS = (1, 4, 16, 64)
PROMPTS = (64, 256)
RESPONSES = (8, 48)
ENGINE = ("engine_step", "engine_row", "engine_turn", "engine_prompt")
PROCESSES = {
    "controller": "controller",
    "learner": "learner",
    "actors": "actors",
    "server": "vllm.entrypoints",
}
"""Name -> a word of its command line."""
SETTLED = 2
"""Updates of a run before its processes are measured."""


async def engine_costs(seconds: float, console: Console) -> dict[str, float]:
    """Fit the costs of ENGINE by least squares of the relative errors over turns of all sizes.

    "engine_error": the mean of what is left.
    """
    rows = []
    measured = []
    async with engine_of("", max(STREAMS), console) as bench:
        for streams, prompt, response in product(STREAMS, PROMPTS, RESPONSES):
            condition = tapped("no", False, prompt, response)
            await speed(bench, condition, streams, seconds / 3)
            tokens_per_second = await speed(bench, condition, streams, seconds)
            measured.append(response / tokens_per_second)
            rows.append([response / streams, response, 1.0, prompt])
            turns = f"{streams} at once, {prompt} + {response} tokens"
            console.print(f"{turns}: {tokens_per_second:,.0f} tokens/s", highlight=False)
    design = np.array(rows) / np.array(measured)[:, None]
    solution = np.maximum(np.linalg.lstsq(design, np.ones(len(rows)), rcond=None)[0], 0.0)
    return dict(zip(ENGINE, solution.tolist(), strict=True)) | {
        "engine_error": float(np.abs(design @ solution - 1).mean())
    }


@dataclass
class Observed:
    """A run that went on, from its SETTLED-th update to its last one."""

    seconds_per_update: float
    turns: list[int]
    """Number of turns of each trained episode."""
    responses: list[int]
    """Tokens of each turn, rejected attempts included."""
    prompt: float
    """Tokens of a prompt that the engine computed."""
    prompt_length: float
    """Tokens of a prompt, computed or found in the cache."""
    processor: dict[str, float]
    """Process -> seconds of a core for a turn. "train" and "intake" are threads of the learner."""
    pause: float
    frames: float
    """Frames of signals for a turn: one for each step of the engine."""
    waits: float
    """Share of the time that the learner does."""


def observe(directory: Path, arguments: list[str]) -> Observed:
    """`python run.py ARGUMENTS` in `directory`.

    Ends the benchmark, with the run's output, if it fails.
    """
    command = [sys.executable, "run.py", "--run-dir", str(directory), *arguments]
    run = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=dying_with_parent(),
    )
    samples: list[tuple[float, dict[str, float]]] = []
    try:
        while run.poll() is None:
            samples.append((time.time(), _meters(run.pid, directory)))
            time.sleep(0.5)
    finally:
        run.terminate()
        said = run.communicate()[0]
    if run.returncode:
        sys.exit(f"run.py {' '.join(arguments)} failed:\n{said[-3000:]}")
    return _observed(directory, samples)


def _meters(pid: int, directory: Path) -> dict[str, float]:
    """Read the counters of a run so far.

    They are seconds of a core by process, and tokens of prompts by the engine's own count.
    """
    seconds: Counter[str] = Counter()
    try:
        for process in psutil.Process(pid).children(recursive=True):
            seconds.update(_seconds(process))
    except psutil.NoSuchProcess:
        pass
    return dict(seconds) | _prompt_tokens(directory)


def _seconds(process: psutil.Process) -> dict[str, float]:
    try:
        line = process.cmdline()
        kind = next((kind for kind, word in PROCESSES.items() if word in line), "")
        if kind != "learner":
            return {kind: sum(process.cpu_times()[:2])} if kind else {}
        by_thread = {
            thread.id: thread.user_time + thread.system_time for thread in process.threads()
        }
    except psutil.Error:
        return {}
    intake = by_thread.pop(process.pid, 0.0)
    return {"intake": intake, "train": sum(by_thread.values())}


def _prompt_tokens(directory: Path) -> dict[str, float]:
    """Return {"prompt": tokens, "cached": those of them that were found in the cache}.

    It is empty while there is no engine.
    """
    try:
        job = Job.load(directory / "job.json")
        request = urllib.request.Request(
            f"{job.endpoints.engines[0]}/metrics", headers={"Authorization": bearer(job.engine_key)}
        )
        with urllib.request.urlopen(request, timeout=2) as answer:
            lines = answer.read().decode().splitlines()
    except (OSError, msgspec.MsgspecError):
        return {}
    names = {"vllm:prompt_tokens_total": "prompt", "vllm:prefix_cache_hits_total": "cached"}
    found = dict.fromkeys(names.values(), 0.0)
    for line in lines:
        name = names.get(line.partition("{")[0])
        if name is not None:
            found[name] += float(line.rpartition(" ")[2])
    return found


def _observed(directory: Path, samples: list[tuple[float, dict[str, float]]]) -> Observed:
    lines = [
        msgspec.json.decode(line) for line in (directory / "metrics.jsonl").read_text().splitlines()
    ]
    updates = [line for line in lines if line["kind"] == "update"]
    started = (directory / "job.json").stat().st_mtime
    begin, end = (started + updates[at]["wall_seconds"] for at in (SETTLED - 1, -1))
    between = updates[SETTLED:]

    def grown(name: str) -> float:
        times, values = zip(
            *((time, meters[name]) for time, meters in samples if name in meters), strict=True
        )
        return float(np.interp(end, times, values) - np.interp(begin, times, values))

    mean = lambda name: sum(line.get(name, 0.0) for line in between) / len(between)  # noqa: E731
    turns, responses = _played(directory)
    played = sum(line["episodes"] * line["turns"] for line in between)
    return Observed(
        seconds_per_update=(end - begin) / len(between),
        turns=turns,
        responses=responses,
        prompt=(grown("prompt") - grown("cached")) / played,
        prompt_length=grown("prompt") / played,
        pause=mean("seconds_pause"),
        frames=sum(line["signal_frames"] for line in between) / played,
        processor={
            name: grown(name) / played
            for name in ("server", "controller", "actors", "intake", "train")
        },
        waits=mean("idle_share_learner"),
    )


def _played(directory: Path) -> tuple[list[int], list[int]]:
    """Turns of each episode; tokens of each turn."""
    turns = []
    responses = []
    for _, _, frame in read_records(directory / "episodes"):
        episode = decode(frame)
        assert isinstance(episode, Trajectory)
        if not episode.key.evaluation and episode.drop_reason is None:
            turns.append(len(episode.turns))
            responses += [
                sum(
                    len(attempt.tokens) // INT32.itemsize for attempt in (turn.kept, *turn.rejected)
                )
                for turn in episode.turns
            ]
    return turns, responses


def costs_of(
    engine: dict[str, float], many: Observed, few: Observed, token_seconds: float
) -> Costs:
    """Return the costs of runs like the one with `many` actors.

    What a step costs beside a turn is from the one with few, which took more steps for a turn.
    `token_seconds`: the controller's for a token's signals, part of what it took for a turn.
    """

    def split(name: str) -> tuple[float, float]:
        """Seconds (of a turn, of a step)."""
        step = max(0.0, (few.processor[name] - many.processor[name]) / (few.frames - many.frames))
        return many.processor[name] - many.frames * step, step

    tokens = sum(many.responses) / len(many.responses)
    controller_turn, controller_frame = split("controller")
    server_turn, server_step = split("server")
    return Costs(
        **{name: engine[name] for name in ENGINE},
        server_turn=server_turn,
        server_step=server_step,
        controller_turn=controller_turn - tokens * token_seconds,
        controller_frame=controller_frame,
        controller_token=token_seconds,
        actor_turn=many.processor["actors"],
        intake_turn=many.processor["intake"],
        train_turn=many.processor["train"],
        pause=many.pause,
    )


def work_of(observed: Observed) -> Work:
    """Return what was played."""
    return Work(observed.turns, observed.responses, observed.prompt)
