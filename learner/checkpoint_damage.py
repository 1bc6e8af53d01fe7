"""Checkpoints that cannot be loaded: a machine lost power, or they were copied in part.

Each has a list of its files with their sizes, so that damage is found without reading the weights.
The supervisor does that, which does not load torch: so this is a module of its own.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

STATE = "training_state"
CONTENTS = f"{STATE}/contents.json"
STATE_FILE = f"{STATE}/state.json"
DAMAGED = "-damaged"


def write_contents(directory: Path) -> None:
    """List the files of a checkpoint, which is complete but for its state.json."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    sizes = {str(path.relative_to(directory)): path.stat().st_size for path in files}
    (directory / CONTENTS).write_text(json.dumps(sizes, indent=1), encoding="utf-8")


def describe_damage(directory: Path) -> str:
    """Say which file of a checkpoint is not as it was written; "" if all are."""
    try:
        json.loads((directory / STATE_FILE).read_bytes())
        sizes = json.loads((directory / CONTENTS).read_bytes())
    except FileNotFoundError as error:
        return f"{Path(error.filename).relative_to(directory)} is missing"
    except ValueError:
        return f"{STATE_FILE} or {CONTENTS} cannot be read"
    for name, written_bytes in sizes.items():
        file = directory / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != written_bytes:
            return f"{name} has {file.stat().st_size:,} bytes, and {written_bytes:,} were written"
    return ""


def numbered_checkpoints(run_dir: Path) -> dict[int, Path]:
    """Return the checkpoints of a run by their updates.

    One that was never finished, or is archived, has no number for a name.
    """
    return {
        int(path.name): path
        for path in (run_dir / "checkpoints").glob("*")
        if path.name.isdecimal()
    }


def newest_undamaged(run_dir: Path) -> Path | None:
    """Return the newest checkpoint of a run that is as it was written; None without one."""
    checkpoints = numbered_checkpoints(run_dir)
    for update in sorted(checkpoints, reverse=True):
        if not describe_damage(checkpoints[update]):
            return checkpoints[update]
    return None


def archive_damaged(run_dir: Path) -> dict[str, str]:
    """Rename damaged checkpoints to *-damaged, and return what is wrong with each.

    So nothing goes on from them, nor counts them. ValueError, and nothing is renamed, if there is
    no other one.
    """
    checkpoints = numbered_checkpoints(run_dir).values()
    damage_of = {path: describe_damage(path) for path in sorted(checkpoints)}
    damaged = {path: damage for path, damage in damage_of.items() if damage}
    if damaged and len(damaged) == len(checkpoints):
        path, damage = list(damaged.items())[-1]
        raise ValueError(f"no checkpoint of the run is whole: in {path}, {damage}")
    for path in damaged:
        target = path.with_name(f"{path.name}{DAMAGED}")
        shutil.rmtree(target, ignore_errors=True)
        os.replace(path, target)
    return {path.name: damage for path, damage in damaged.items()}
