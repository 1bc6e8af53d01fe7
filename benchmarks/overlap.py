"""How much of the time that training and generation could share do they share?

Synchronous and asynchronous runs, side by side.

`python -m benchmarks.overlap DIR [--seconds S] [--updates N] [--seeds N] [--json FILE]`

`python run.py sweep DIR` of max_staleness 0, 1 and 2, in an environment whose steps take a second
of the clock and none of a core, as those of one that asks a service on another machine do: cores
that generation leaves idle are there for training, as an engine's own device would leave them. The
policy is random (DIR-policy). The same command goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import load_environment
from config.resolve import resolve
from learner.warm_start.build import TOKENIZER_EPISODES
from learner.warm_start.demonstrations import play_demonstrations
from learner.warm_start.tiny import build_tiny
from protocol.lifetime import dying_with_parent
from supervisor.cli.sweep import FIGURES_FILE
from supervisor.process import ROOT

STALENESS = (0, 1, 2)
SETTINGS = {
    "env": load_environment.NAME,
    "control": "off",
    "actors": "64",
    "sampling.max_tokens": "16",
    "minutes": "60",
    "eval.every": "0",
    "eval.episodes": "1",
}
HIDDEN_SIZE = 256


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.overlap", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("dir", type=Path, help="where the sweep is kept")
    parser.add_argument(
        "--seconds",
        type=float,
        default=1.0,
        help="that a step of the environment takes (default %(default)s)",
    )
    parser.add_argument("--updates", type=int, default=12, help="of each run (default %(default)s)")
    parser.add_argument("--seeds", type=int, default=2, help="default %(default)s")
    parser.add_argument("--json", type=Path, help="write the sweep's figures to this file, too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        load_environment.install(Path(temporary))
        sys.path.append(temporary)
        policy = options.dir.with_name(
            f"{options.dir.name}-policy"
        ).absolute()  # made here, where steps take no time
        if not policy.exists():
            config = resolve(None, SETTINGS | {"model.tiny.hidden_size": str(HIDDEN_SIZE)})
            build_tiny(
                policy,
                config.model.tiny,
                [
                    turn
                    for turns in play_demonstrations(config, TOKENIZER_EPISODES)
                    for turn in turns
                ],
                seed=0,
            )
        arguments = [
            *(f"--{name}={value}" for name, value in SETTINGS.items()),
            f"--max_staleness={','.join(map(str, STALENESS))}",
        ]
        arguments += [
            f"--model={policy}",
            f"--updates={options.updates}",
            f"--seeds={options.seeds}",
        ]
        path = os.pathsep.join([str(ROOT), temporary])
        environment = os.environ | {
            "PYTHONPATH": path,
            load_environment.SECONDS: str(options.seconds),
        }
        command = [sys.executable, "run.py", "sweep", str(options.dir), *arguments]
        made = subprocess.run(
            command, cwd=ROOT, env=environment, check=False, preexec_fn=dying_with_parent()
        )
    if made.returncode:
        sys.exit(made.returncode)
    Console(width=110).print(table(json.loads((options.dir / FIGURES_FILE).read_text())["rows"]))
    if options.json:
        shutil.copy(options.dir / FIGURES_FILE, options.json)


def table(rows: Sequence[dict]) -> Table:
    """As in docs/measurements/performance.md; a row has (mean, low, high) of its seeds."""
    out = Table(
        "max_staleness",
        "seconds an update",
        "speed-up",
        "the most possible",
        "reached",
        "engine idle",
        "learner idle",
        "age",
    )
    for row in rows:
        seconds, low, high = row["seconds_per_update"]
        share = "" if row["reached"] is None else f"{row['reached']:.0%}"
        out.add_row(
            *(
                row["settings"]["max_staleness"],
                f"{seconds:.1f} ({low:.1f}-{high:.1f})",
                f"{row['speed_up']:.2f}",
                f"{row['ideal']:.2f}",
            ),
            *(
                share,
                f"{row['idle_share_engine'][0]:.0%}",
                f"{row['idle_share_learner'][0]:.0%}",
                f"{row['token_age_mean'][0]:.2f}",
            ),
        )
    return out


if __name__ == "__main__":
    main()
