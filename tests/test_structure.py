"""The rules of the layout, read from the source.

They are who may import whom, and how large a module may grow.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from protocol.messages import DropReason, StopReason
from tests.fixtures import ROOT

UNIT = ROOT / "tests" / "unit"
PACKAGES = (
    "actors",
    "config",
    "controller",
    "engine",
    "envs",
    "learner",
    "protocol",
    "supervisor",
    "telemetry",
)
TOP = (*PACKAGES, "run")
"""Everything of this project that can be imported."""

MAY_IMPORT = {
    "config": {"protocol"},
    "protocol": set(),
    "envs": set(),
    "telemetry": {"protocol", "config"},
    "actors": {"envs", "protocol", "config", "telemetry"},
    "controller": {"engine", "envs", "protocol", "config", "telemetry"},
    "engine": {"protocol", "config"},
    "learner": {"envs", "protocol", "config", "telemetry"},
}
"""Part -> packages that it may import besides itself.

Those that are not here start the others, and may import them all but run.
"""

MAY_IMPORT_TOO = {
    "config": {"envs.registry"},
    "learner": {"engine.nccl_sender"},
    "envs": {"protocol.files", "protocol.lifetime"},
    "engine": {"controller.rules.scores", "controller.rules.thinking"},
}
"""Single modules of other parts.

The sending end of vLLM's NCCL transfer is vLLM's code, which the learner has to call and only
engine/ may know: a module there keeps vLLM in one folder, and the learner from the rest of the
controller. What makes files of an environment writes them as all others do, and what it starts ends
with its process. An environment declares
its settings, and its registry knows where.
"""

TIME_OF_DAY = "telemetry/probes/clocks.py"
"""The module that asks for it, for all others."""

MAY_WRITE = {
    "benchmarks": "what they write is for who runs them, who sees it fail",
    "learner/checkpoint_damage.py": "into a directory that gets its name once it is complete",
    "learner/checkpoint.py": (
        "into a directory that gets its name once it is complete, and a state that replaces "
        "another (`atomic_replace`)"
    ),
    "learner/data/episode_log.py": "records with checksums, of which a torn one is passed over",
    "learner/publish.py": "a file that gets its name once it is complete (`atomic_replace`)",
    "protocol/files.py": "all others write by it",
    "supervisor/process.py": "logs of processes",
    "telemetry/sinks/event_files.py": "records with checksums",
    "telemetry/probes/spans.py": "lines, of which a torn one is passed over",
}
"""Part or module that may write a file in another way than by protocol/files.py -> why.

A file that is torn is there, and is no file.
"""

WRITES = "|".join(
    [
        r"\.write_(?:text|bytes)\(",
        r"""\bopen\([^)\n]*["'][wax]b?\+?["']""",
        r"""\.open\(["']\w*[wax+]""",
        r"json\.dump\(",
        r"np\.savez?\(",
        r"\bsave_file\(",
    ]
)

MAX_LINES = 550
NO_NAMES = {"utils", "util", "helpers", "misc", "common"}


@functools.cache
def sources() -> list[Path]:
    """Every module of the project that is no test, as a path relative to ROOT."""
    files = [ROOT / "run.py"]
    for package in (*PACKAGES, "benchmarks"):
        files += (ROOT / package).rglob("*.py")
    return sorted(file.relative_to(ROOT) for file in files if file.exists())


@functools.cache
def text_of(source: Path) -> str:
    return (ROOT / source).read_text()


@functools.cache
def tree_of(source: Path) -> ast.Module:
    return ast.parse(text_of(source))


def offenders(breaks_rule: Callable[[Path], object]) -> list[str]:
    """List the sources that break a rule."""
    return [source.as_posix() for source in sources() if breaks_rule(source)]


@functools.cache
def imports(source: Path) -> set[str]:
    """Return the full names of the modules that `source` imports.

    They count wherever they are in it, under TYPE_CHECKING or not.
    """
    names = set()
    for node in ast.walk(tree_of(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{source}: relative import; this project's are absolute"
            names.add(node.module or "")
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in (
            "import_module",
            "__import__",
        ):
            names |= {
                argument.value
                for argument in node.args
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
            }
    return names


def part_of(source: Path) -> str:
    """The package or module at the top that `source` belongs to."""
    return source.parts[0].removesuffix(".py")


def importers(module: str) -> set[str]:
    """The sources that import `module` or something in it."""
    return {
        source.as_posix()
        for source in sources()
        if any(name.split(".")[0] == module for name in imports(source))
    }


def test_there_are_sources_of_every_part() -> None:
    assert {part_of(source) for source in sources()} >= set(TOP)


def forbidden_imports(source: Path) -> set[str]:
    """Return the parts that a source imports against the arrows."""
    part = part_of(source)
    names = imports(source) - MAY_IMPORT_TOO.get(part, set())
    used = {name.split(".")[0] for name in names} & set(TOP) - {part}
    return used - MAY_IMPORT.get(part, set(TOP))


def test_dependencies_point_one_way() -> None:
    found = {source.as_posix(): forbidden_imports(source) for source in sources()}
    assert {source: parts for source, parts in found.items() if parts} == {}


def test_nobody_imports_run() -> None:
    assert importers("run") == set()


def test_nobody_imports_the_tests_or_benchmarks() -> None:
    assert importers("tests") == set()
    assert {name for name in importers("benchmarks") if not name.startswith("benchmarks/")} == set()


def test_vllm_is_imported_only_by_the_engine() -> None:
    assert {name for name in importers("vllm") if not name.startswith("engine/")} == set()


@pytest.mark.parametrize("library", ["torch", "transformers"])
def test_torch_is_imported_only_by_the_engine_and_the_learner(library: str) -> None:
    assert {
        name
        for name in importers(library)
        if not name.startswith(("engine/", "learner/", "benchmarks/"))
    } == set()


def asks_time_of_day(source: Path) -> bool:
    if source.parts[0] == "benchmarks" or source.as_posix() == TIME_OF_DAY:
        return False
    asked = r"\btime\.time(_ns)?\b|from time import|\bdatetime\.(now|utcnow|today)\b"
    return bool(re.search(asked, text_of(source)))


def test_durations_are_taken_from_a_clock_that_nobody_sets() -> None:
    """Durations are taken from a clock that nobody sets.

    The time of day may be set at any moment, by an hour; `time.monotonic` goes on, and stands still
    while a laptop sleeps.
    """
    assert offenders(asks_time_of_day) == []


def unknown_reasons(source: Path) -> set[str]:
    """Return the reasons that a source names, and that no enumeration has."""
    reasons = {"DropReason": DropReason, "StopReason": StopReason}
    return {
        node.attr
        for node in ast.walk(tree_of(source))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id in reasons
        and node.attr not in reasons[node.value.id].__members__
    }


def test_reasons_that_modules_name_exist() -> None:
    """A reason for an end is looked up when something ends, which may be hours after the start."""
    assert offenders(unknown_reasons) == []


def writes_by_itself(source: Path) -> bool:
    if MAY_WRITE.keys() & {source.as_posix(), source.parts[0]}:
        return False
    return bool(re.search(WRITES, text_of(source)))


def test_files_are_complete_or_absent() -> None:
    """What else writes a file does so by protocol.files.atomic_write."""
    assert offenders(writes_by_itself) == []


def test_no_module_is_a_giant() -> None:
    assert offenders(lambda source: len(text_of(source).splitlines()) > MAX_LINES) == []


def test_modules_are_named_after_what_they_hold() -> None:
    assert (
        offenders(lambda source: NO_NAMES & {part.removesuffix(".py") for part in source.parts})
        == []
    )


def test_modules_say_what_they_are_for() -> None:
    assert offenders(lambda source: not ast.get_docstring(tree_of(source))) == []


def test_no_private_path_of_a_machine_is_named() -> None:
    path = re.compile(r"/(work|opt|tmp|home|root)/\w")
    assert offenders(lambda source: path.search(text_of(source))) == []


# --- tests


def list_unit_tests() -> list[Path]:
    """Every module of tests of units, as a path relative to tests/unit."""
    return sorted(file.relative_to(UNIT) for file in UNIT.rglob("*.py"))


def is_named_after_a_module(test: Path) -> bool:
    package = ROOT / test.parent
    names = {path.stem for path in package.iterdir()} | {package.name}
    words = test.stem.removeprefix("test_").split("_")
    beginnings = {"_".join(words[:count]) for count in range(1, len(words) + 1)}
    return bool(beginnings & names)


def test_tests_of_units_mirror_the_tree() -> None:
    """Each is named after the module that it tests, or its package, and what of it."""
    lost = [test.as_posix() for test in list_unit_tests() if not is_named_after_a_module(test)]
    assert lost == []


OF_LIBRARIES = {"_get_streams"}
"""What is exchanged of others: vLLM's streams of a GPU, where there is none."""


@pytest.mark.parametrize("folder", ["tests", "benchmarks"])
def test_nothing_private_is_named_in_a_text(folder: str) -> None:
    """Ruff's SLF001 finds what is named in code, and not what `setattr` is told."""
    for file in (ROOT / folder).rglob("*.py"):
        named = set(re.findall(r"""attr\([^()]*?,\s*["'](_[a-z]\w*)["']""", file.read_text()))
        assert named <= OF_LIBRARIES, f"{file.relative_to(ROOT)}: {named - OF_LIBRARIES}"
