"""How far do one controller and one learner go?

A model of a run, fed with what its parts take here, checked against runs, and asked.

`python -m benchmarks.scaling DIR [--quick] [--json FILE]`      (half an hour, on an idle machine)

Three parts; what is in DIR is not measured again:

costs    the engine alone, with turns of many sizes; the controller's token (as
         benchmarks.control); all else in two runs of the default job
check    seconds an update of these and other runs (fewer actors, other staleness) beside the
         model's
clusters the model's answer for more engines, each full: of the tiny policy as measured here, and
         of a large one on a GPU, as ASSUMED. How much of it do one controller and one learner
         reach, how many controllers does it take, what goes over the network?
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import shutil
from collections.abc import Iterator
from math import ceil
from pathlib import Path
from typing import NamedTuple

import msgspec
from rich.console import Console
from rich.table import Table

from benchmarks import studies
from benchmarks.control import router_microseconds
from benchmarks.scaling_costs import Observed, costs_of, engine_costs, observe, work_of
from benchmarks.scaling_model import Costs, Outcome, Run, Setup, Work


class Case(NamedTuple):
    """A run to be checked."""

    actors: int
    max_staleness: int


MEASURED = Case(64, 1), Case(4, 1)
"""The runs that the costs are from."""
CASES = (*MEASURED, Case(64, 0), Case(64, 3), Case(16, 0), Case(16, 1))
GROUPS = 8
GROUP_SIZE = 8
CORES = 2
UPDATES = 12
SIMULATED = 60
"""Updates of the model, for a check."""

ENGINES = (1, 8, 64, 1000)
ROWS = 64
"""Episodes under way for each engine; more wait, so that none is ever short of them."""
ENOUGH = 0.97
"""Share of what unlimited controllers bring that is as good as all of it."""
TOKEN_BYTES = 4 + 4 + 1 + 2 + 12
PROMPT_BYTES = 4
"""Bytes of a prompt's token in a turn's result and in a trajectory.

TOKEN_BYTES are those of a response's token (id, log-prob, mask, M_t, signals).
"""


class Engine(NamedTuple):
    """An engine, of which a cluster has many, and what is played on it."""

    name: str
    costs: Costs
    work: Work
    prompt: float
    """Tokens of a turn's whole prompt."""
    weights_bytes: float


def assumed(costs: Costs) -> Engine:
    """Seven billion parameters in bfloat16 on a GPU.

    Not measured: 21 ms a step of 64 turns, 20,000 prompt tokens/s, 300 tokens a turn, a second for
    new weights. Everything but the engine takes what it takes here.
    """
    there = dataclasses.replace(
        costs,
        engine_step=0.015,
        engine_row=0.0001,
        engine_turn=0.0,
        engine_prompt=0.00005,
        pause=1.0,
    )
    return Engine(
        "7B on a GPU, assumed", there, Work([10, 15, 20, 30], [100, 200, 300, 600], 300), 2000, 15e9
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("dir", type=Path, help="where costs.json, runs.json and policies are kept")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="under a minute: nothing is measured, round figures, up to 8 engines",
    )
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    options = parser.parse_args()
    console = Console()
    if options.quick:
        costs = Costs(0.002, 1e-4, 5e-4, 5e-6, 1e-3, 3e-4, 5e-4, 3e-4, 3e-6, 1e-3, 5e-5, 8e-3, 0.1)
        found = {
            "clusters": clusters(
                [assumed(costs)], [count for count in ENGINES if count <= 8], console
            )
        }
    else:
        options.dir.mkdir(parents=True, exist_ok=True)
        found = study(options.dir, console)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


def study(directory: Path, console: Console) -> dict:
    """All three parts, printed."""
    runs = observed_runs(directory, console)
    measured = runs[MEASURED[0]]
    costs = costs_of(
        engine_figures(directory, console),
        runs[MEASURED[0]],
        runs[MEASURED[1]],
        token_microseconds(directory) / 1e6,
    )
    console.print(costs_table(costs, measured))
    checks = list(check(runs, costs))
    console.print(check_table(checks))
    tiny = Engine(
        "the tiny policy on a core", costs, work_of(measured), measured.prompt_length, 3.5e6
    )
    return {
        "costs": dataclasses.asdict(costs),
        "checks": checks,
        "worst_ratio": max((row["ratio"] for row in checks), key=lambda ratio: abs(ratio - 1)),
        "clusters": clusters([tiny, assumed(costs)], ENGINES, console),
    }


# --- costs


def engine_figures(directory: Path, console: Console) -> dict[str, float]:
    """Measured once."""
    file = directory / "engine.json"
    if not file.exists():
        file.write_text(json.dumps(asyncio.run(engine_costs(3.0, console))))
    return json.loads(file.read_text())


def token_microseconds(directory: Path) -> float:
    """Return what the controller takes for a token's signals, in microseconds; measured once."""
    file = directory / "token.json"
    if not file.exists():
        file.write_text(json.dumps(router_microseconds()))
    return json.loads(file.read_text())


def observed_runs(directory: Path, console: Console) -> dict[Case, Observed]:
    """Each made once, of one warm-started policy that no longer learns, so that all play alike."""
    warm = studies.warm_start(directory, "alfworld", 0, "first", console)
    found = {}
    for number, case in enumerate(CASES, 1):
        file = directory / f"run-{case.actors}-{case.max_staleness}.json"
        if not file.exists():
            console.print(
                f"run {number} of {len(CASES)}: {case.actors} actors, staleness "
                f"{case.max_staleness}",
                highlight=False,
            )
            arguments = [
                *warm,
                "--actors",
                str(case.actors),
                "--max-staleness",
                str(case.max_staleness),
                "--updates",
                str(UPDATES),
            ]
            arguments += [
                "--learner.learning_rate",
                "0",
                "--eval.episodes",
                "2",
                "--eval.every",
                "0",
                "--minutes",
                "60",
            ]
            shutil.rmtree(directory / "running", ignore_errors=True)
            file.write_bytes(msgspec.json.encode(observe(directory / "running", arguments)))
        found[case] = msgspec.json.decode(file.read_bytes(), type=Observed)
    return found


def costs_table(costs: Costs, measured: Observed) -> Table:
    """As in docs/measurements/scaling.md."""
    shown = Table("", "us of a core", title="what the parts take")
    for name, seconds in dataclasses.asdict(costs).items():
        shown.add_row(name.replace("_", ", "), f"{1e6 * seconds:,.1f}")
    turns, responses = (
        sum(values) / len(values) for values in (measured.turns, measured.responses)
    )
    prompt = f"{measured.prompt_length:.0f} ({measured.prompt:.0f} computed)"
    shown.add_row("an episode", f"{turns:.1f} turns of {prompt} + {responses:.1f} tokens")
    return shown


# --- check


def check(runs: dict[Case, Observed], costs: Costs) -> Iterator[dict]:
    """Yield each run, and the model of it.

    The model's costs are from two of the runs, and its play is that of the run itself. "ratio":
    with all costs as much higher as the learner's time for a turn was in that run: a machine that
    is shared is not equally fast all day.
    """
    for case, seen in runs.items():
        setup = Setup(GROUPS, GROUP_SIZE, case.max_staleness, case.actors, cores=CORES)
        model = Run(costs, work_of(seen), setup).outcome(SIMULATED)
        slower = seen.processor["train"] / costs.train_turn
        yield {
            **case._asdict(),
            "seconds": seen.seconds_per_update,
            "model": model.seconds_per_update,
            "slower": slower,
            "ratio": slower * model.seconds_per_update / seen.seconds_per_update,
            "waits": seen.waits,
            "model_waits": 1 - model.learner_busy,
        }


def check_table(rows: list[dict]) -> Table:
    """As in docs/measurements/scaling.md."""
    shown = Table(
        "actors",
        "S",
        "seconds",
        "model",
        "machine slower",
        "model, slower",
        "ratio",
        "learner waits",
        "model",
    )
    for row in rows:
        measured = " (measured)" if (row["actors"], row["max_staleness"]) in MEASURED else ""
        seconds = (
            row["seconds"],
            row["model"],
            row["slower"],
            row["model"] * row["slower"],
            row["ratio"],
        )
        waits = f"{row['waits']:.0%}", f"{row['model_waits']:.0%}"
        shown.add_row(
            f"{row['actors']}{measured}",
            f"{row['max_staleness']}",
            *(f"{value:.2f}" for value in seconds),
            *waits,
        )
    return shown


# --- clusters


def clusters(
    engines: list[Engine], counts: tuple[int, ...] | list[int], console: Console
) -> list[dict]:
    """A row for each kind and number of engines, printed."""
    rows = []
    for engine in engines:
        for count in counts:
            rows.append(cluster(engine, count))
            console.print(f"{engine.name}: {count:,} simulated", highlight=False)
    shown = Table(
        "",
        "engines",
        "turns/s",
        "tokens/s",
        "one controller",
        "controllers needed",
        "learner's intake",
        "MB/s",
        "GB an update",
    )
    for row in rows:
        shown.add_row(
            row["name"],
            f"{row['engines']:,}",
            f"{row['turns_per_second']:,.0f}",
            f"{row['tokens_per_second']:,.0f}",
            f"{row['one_controller']:.0%}",
            f"{row['controllers']}",
            f"{row['intake']:.0%}",
            f"{row['bytes_per_second'] / 1e6:,.1f}",
            f"{row['weights_bytes'] / 1e9:,.1f}",
        )
    console.print(shown)
    return rows


def cluster(engine: Engine, count: int) -> dict:
    """Model a cluster of so many engines.

    Returns what they bring if nothing else is short; what share of it one controller lets through;
    the fewest that let ENOUGH through; what share of its time the learner's thread of messages is
    busy then (more than 1: it is too slow); bytes a second to and from actors, and of weights, were
    each engine sent its own.
    """
    most = simulate(engine, count, count)
    one = simulate(engine, count, 1) if count > 1 else most
    enough = ENOUGH * most.tokens_per_second
    controllers = 1
    if one.tokens_per_second < enough:
        controllers = max(2, ceil(most.controller_busy * count))
        while (
            controllers < count and simulate(engine, count, controllers).tokens_per_second < enough
        ):
            controllers = min(count, ceil(1.05 * controllers))
    response = most.tokens_per_second / most.turns_per_second
    turn_bytes = 2 * (PROMPT_BYTES * engine.prompt + TOKEN_BYTES * response)
    return {
        "name": engine.name,
        "engines": count,
        "turns_per_second": most.turns_per_second,
        "tokens_per_second": most.tokens_per_second,
        "one_controller": one.tokens_per_second / most.tokens_per_second,
        "controllers": controllers,
        "intake": most.turns_per_second * engine.costs.intake_turn,
        "bytes_per_second": most.turns_per_second * turn_bytes,
        "weights_bytes": engine.weights_bytes * count,
    }


def simulate(engine: Engine, engines: int, controllers: int) -> Outcome:
    """Engines that are always full, for about so many turns of each place."""
    costs = engine.costs
    work = engine.work
    turn = sum(work.responses) / len(work.responses) * (costs.engine_step + ROWS * costs.engine_row)
    setup = Setup(
        GROUPS, GROUP_SIZE, 0, places=ROWS * engines, engines=engines, controllers=controllers
    )
    return Run(costs, work, setup).full((12 if engines < 1000 else 6) * turn)


if __name__ == "__main__":
    main()
