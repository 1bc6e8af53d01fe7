"""Write `layouts.json`, the facts that games are generated from, out of an alfworld wheel.

    python -m envs.alfworld.extract WHEEL_OR_DIRECTORY

The source is alfworld 0.4.2 (https://github.com/alfworld/alfworld, MIT license): its AI2-THOR
layouts, its containment and affordance tables and its split of the rooms. Nothing else is taken
over. Run it again only for a new alfworld version.
"""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from protocol.files import atomic_write

OUTPUT = Path(__file__).with_name("layouts.json")
LICENSE = "alfworld-0.4.2.dist-info/LICENSE"


def open_source(source: Path) -> Callable[[str], str]:
    """A function from a path in the wheel to its text.

    `source` is a wheel, or a directory into which one was unpacked.
    """
    if source.is_dir():
        return lambda name: (source / name).read_text()
    archive = zipfile.ZipFile(source)
    return lambda name: archive.read(name).decode()


def extract_facts(read: Callable[[str], str]) -> dict[str, Any]:
    """All facts about the rooms that a game needs, as plain JSON."""
    constants: dict[str, Any] = {}
    # The module is a list of constants that imports only the standard library.
    exec(compile(read("alfworld/gen/constants.py"), "alfworld/gen/constants.py", "exec"), constants)

    def without_slices(kinds: Any) -> list[str]:
        """The kinds without the slices, which exist in AI2-THOR only, not in the text games."""
        return sorted(kind for kind in kinds if not kind.endswith("Sliced"))

    movable = set(constants["MOVABLE_RECEPTACLES_SET"])
    held_out = set(constants["TEST_SCENE_NUMBERS"])
    scenes = {}
    for number in sorted(constants["SCENE_NUMBERS"]):
        places = json.loads(read(f"alfworld/gen/layouts/FloorPlan{number}-openable.json"))
        scenes[str(number)] = {
            "room": next(
                room for room, numbers in constants["SCENE_TYPE"].items() if number in numbers
            ),
            "split": "held_out" if number in held_out else "train",
            "receptacles": {thor_id: places[thor_id] for thor_id in sorted(places)},
            "kinds": sorted(
                json.loads(read(f"alfworld/gen/layouts/FloorPlan{number}-objects.json"))
            ),
        }
    affordances = constants["VAL_ACTION_OBJECTS"]
    contains = {
        kind: without_slices(things)
        for kind, things in sorted(constants["VAL_RECEPTACLE_OBJECTS"].items())
        if kind not in movable
    }
    receptacle_kinds = sorted(set(constants["RECEPTACLES"]) - movable)
    return {
        "source": "Facts from alfworld 0.4.2, written by envs/alfworld/extract.py. Its licence:",
        "licence": read(LICENSE),
        "receptacle_kinds": receptacle_kinds,
        "object_kinds": sorted(set(constants["OBJECTS_SET"]) - set(receptacle_kinds)),
        "movable_receptacles": sorted(movable),
        "openable": sorted(set(constants["OPENABLE_CLASS_SET"]) - movable),
        "contains": contains,
        **{name.lower(): without_slices(affordances[name]) for name in sorted(affordances)},
        "rooms_of_task": {
            task: sorted(rooms) for task, rooms in sorted(constants["GOALS_VALID"].items())
        },
        "scenes": scenes,
    }


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    facts = extract_facts(open_source(Path(sys.argv[1])))
    text = json.dumps(facts, separators=(",", ":"))
    for key in ('"receptacles":', '"kinds":'):
        text = text.replace(key, "\n" + key)
    atomic_write(OUTPUT, text + "\n")
    print(f"{OUTPUT}: {len(text) / 1000:.0f} kB")


if __name__ == "__main__":
    main()
