"""The documents hold what they promise: width, links, options, code, generated pages."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from config.options import (
    SHORT_NAMES,
    all_settings,
    environment_fields,
    tagged_sections,
)
from config.recipes import RECIPE_OPTION
from config.resolve import parse_overrides, resolve
from config.sets import set_fields
from config.template_arguments import TEMPLATE_ARGUMENTS
from envs.registry import BUILT_IN_SETTINGS, environment_names
from protocol import messages
from supervisor.cli.commands import COMMANDS
from supervisor.cli.reference import PAGES
from tests.fixtures import ROOT
from tests.fixtures.example_environment import guide_code
from tests.fixtures.harnesses import harness_code
from tests.fixtures.tool_environment import tool_code

DOCS = ROOT / "docs"
WIDTH = 100
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCE = re.compile(r"```(\w*)\n(.*?)```", re.DOTALL)
OPTION = re.compile(r"(?<![\w-])--([a-z][\w-]*(?:\.\w+)*)")
OTHERS_OPTIONS = {
    "env.settings.largest",
    "enable-scale-out",
    "extra-index-url",
    "from-file",
    "logdir",
    "logits-processors",
    "logprobs-mode",
    "middleware",
    "no-deps",
    "no-enable-chunked-prefill",
    "partition",
    "rm",
    "shm-size",
    "hf-overrides",
    "quantization",
    "tensor-parallel-size",
    "enable-batch-sharded-sampling",
    "target",
    "weight-transfer-config",
    "wheel-dir",
}
"""Options of pip, Docker, kubectl, TensorBoard, vLLM, Slurm and an example that pages name."""

LAUNCHERS = re.compile(r"--\w+\.\w*launch \S+")
"""Commands of other programs, as values of our settings."""


def pages() -> list[Path]:
    """Return every document of the project, as tracked by git."""
    listed = subprocess.run(
        ["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [ROOT / name for name in listed.stdout.split()]


def guides() -> list[Path]:
    """Return the pages that readers follow, typing, and those where they look things up."""
    written = [*(DOCS / "guides").glob("*.md"), *(DOCS / "reference").glob("*.md")]
    return [ROOT / "README.md", *sorted(page for page in written if page.name not in PAGES)]


def setting_names() -> set[str]:
    """Return the full names of all settings, those of environments too, and of tagged sections."""
    own = {name for environment in BUILT_IN_SETTINGS for name in environment_fields(environment)}
    of_sets = {
        name
        for environment in BUILT_IN_SETTINGS
        for name in set_fields(["NAME", "unseen", "seen", "test"], environment)
    }
    open_sections = {"env.settings", "eval.sets", TEMPLATE_ARGUMENTS}
    own |= {f"{TEMPLATE_ARGUMENTS}.enable_thinking"}
    return own | of_sets | {*open_sections, *all_settings(), *tagged_sections()}


def known_options() -> set[str]:
    """Return every option of every command, without its dashes."""
    settings = {name.replace("_", "-") for name in (*setting_names(), *SHORT_NAMES)}
    options = set()
    for source in (*(ROOT / "supervisor").rglob("*.py"), ROOT / "envs" / "search" / "server.py"):
        options |= set(re.findall(r'"--([a-z][\w-]*)"', source.read_text()))
    return settings | options | {RECIPE_OPTION}


def options_in(text: str) -> set[str]:
    """Return the options that a page names, spelled with dashes."""
    text = LAUNCHERS.sub("", text)
    return {name.replace("_", "-") for name in OPTION.findall(text)} - OTHERS_OPTIONS


def identify(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


every_page = pytest.mark.parametrize("page", pages(), ids=identify)
every_guide = pytest.mark.parametrize("page", guides(), ids=identify)


@every_page
def test_documents_prose_fits_the_width(page: Path) -> None:
    """Tables and images are excepted; code is not."""
    lines = page.read_text().splitlines()
    wide = [line for line in lines if len(line) > WIDTH]
    assert [line for line in wide if not line.lstrip().startswith(("|", "!["))] == []


@every_page
def test_documents_relative_links_resolve(page: Path) -> None:
    links = [link.partition("#")[0] for link in LINK.findall(page.read_text())]
    relative = [link for link in links if link and not link.startswith(("http://", "https://"))]
    assert [link for link in relative if not (page.parent / link).exists()] == []


@every_page
def test_documents_named_in_text_exist(page: Path) -> None:
    """A path from the root, as docs/guides/control.md, names a file that is there."""
    named = re.findall(r"(?<![\w/])docs/[\w/.-]*\w", page.read_text())
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_documents_named_in_code_exist() -> None:
    command = [
        "git",
        "grep",
        "-hoE",
        r"\bdocs/[[:alnum:]_./-]*[[:alnum:]]",
        "--",
        "*.py",
        "Makefile",
    ]
    named = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert [path for path in set(named.split()) if not (ROOT / path).exists()] == []


@every_guide
def test_documents_options_of_guides_exist(page: Path) -> None:
    assert options_in(page.read_text()) - known_options() == set()


@every_guide
def test_documents_settings_of_guides_exist(page: Path) -> None:
    """A name in backticks whose first part is a section is a setting."""
    sections = {name.partition(".")[0] for name in all_settings()}
    named = re.findall(r"`([a-z_]+\.[a-z_.]+)`", page.read_text())
    settings = {name for name in named if name.partition(".")[0] in sections} - {
        "run.py",
        "eval.json",
    }
    assert settings - setting_names() == set()


def train_commands(text: str) -> list[list[str]]:
    """Return the settings of each `python run.py` in a page that starts a new run."""
    commands = [words for words in run_commands(text) if not words or words[0].startswith("--")]
    return [
        [word for word in words if word not in ("--serial", "--dry-run")]
        for words in commands
        if not {"--resume", "--help"} & set(words)
    ]


def run_commands(text: str) -> list[list[str]]:
    """Return the arguments of each `python run.py` in a page."""
    commands = []
    for _language, code in FENCE.findall(text):
        for line in code.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:2] == ["python", "run.py"]:
                # a checkpoint of the reader's: some directory
                commands.append([re.sub(r"^RUN/.*", str(DOCS), word) for word in words[2:]])
    return commands


@every_guide
def test_documents_commands_of_guides_exist(page: Path) -> None:
    first_words = {words[0] for words in run_commands(page.read_text()) if words}
    named = {word for word in first_words if not word.startswith("--")}
    assert named - set(COMMANDS) == set()


@every_guide
def test_documents_train_commands_of_guides_are_accepted(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bisect_game.py").write_text(guide_code())
    (tmp_path / "prices.py").write_text(tool_code())
    (tmp_path / "sums.py").write_text(harness_code())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for settings in train_commands(page.read_text()):
        resolve(overrides=parse_overrides(settings))


@every_guide
def test_documents_settings_files_of_guides_are_accepted(page: Path, tmp_path: Path) -> None:
    """A block of TOML with sections of ours is a file of settings.

    But for such of an environment that a reader has yet to make.
    """
    sections = {name.partition(".")[0] for name in all_settings()}
    file = tmp_path / "settings.toml"
    for language, code in FENCE.findall(page.read_text()):
        tree = tomllib.loads(code) if language == "toml" else {}
        environment = tree.get("env", {}).get("name", "alfworld")
        if tree.keys() & sections and environment in environment_names():
            file.write_text(code)
            resolve(file)


def test_documents_algorithms_of_papers_are_accepted() -> None:
    page = (DOCS / "reference" / "algorithms.md").read_text()
    commands = re.findall(r"^\| [^`|]+ \| `(--[^`]+)` \|$", page, re.MULTILINE)
    assert len(commands) >= 10
    for command in commands:
        resolve(overrides=parse_overrides(shlex.split(command)))


@every_guide
def test_documents_python_of_guides_compiles(page: Path) -> None:
    for language, code in FENCE.findall(page.read_text()):
        if language == "python":
            compile(code, str(page), "exec")


@every_guide
def test_documents_imports_of_guides_resolve(page: Path) -> None:
    """Each name that a guide imports from this project is there."""
    for language, code in FENCE.findall(page.read_text()):
        if language != "python":
            continue
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and (ROOT / node.module.split(".")[0]).exists():
                module = importlib.import_module(node.module)
                assert [name.name for name in node.names if not hasattr(module, name.name)] == []


@every_guide
def test_documents_files_of_guides_exist(page: Path) -> None:
    """A path in backticks that begins with a folder of ours is there."""
    folders = "actors|config|controller|engine|envs|learner|protocol|supervisor|telemetry|tests"
    named = re.findall(rf"`((?:{folders})/[\w/]*(?:\.\w+)?)`", page.read_text())
    new = {"learner/advantages/best_of_group.py", "learner/losses/square_root_is.py"}
    assert [path for path in named if path not in new and not (ROOT / path).exists()] == []


@pytest.mark.parametrize("name", PAGES)
def test_documents_made_from_code_are_current(name: str) -> None:
    assert (DOCS / "reference" / name).read_text() == PAGES[name](), (
        "python -m supervisor.cli.reference"
    )


def test_documents_directions_name_every_message_once_or_more() -> None:
    directions = re.findall(r"-> .*", messages.__doc__)
    named = set(re.findall(r"\b[A-Z]\w+", " ".join(directions)))
    structs = messages.Message.__subclasses__()
    defined = {struct.__name__ for struct in structs if struct.__module__ == messages.__name__}
    assert named == defined


def test_documents_invariants_cited_by_tests_are_numbered() -> None:
    page = (DOCS / "reference" / "invariants.md").read_text()
    numbered = re.findall(r"^## (\d+)\.", page, re.MULTILINE)
    assert numbered == [str(number) for number in range(1, len(numbered) + 1)]
    cited = set()
    for file in (ROOT / "tests").rglob("*.py"):
        for words in re.findall(r"(?i)invariants?[_ ](\d+(?:_and_\d+)*)", file.read_text()):
            cited |= set(words.split("_and_"))
    assert cited == set(numbered) - {"9"}  # held by types: messages carry ids, and no text


def test_documents_dates_stand_in_measurements_alone() -> None:
    pages_elsewhere = [page for page in pages() if "measurements" not in page.parts]
    dated = [page for page in pages_elsewhere if re.search(r"\b20\d\d-\d\d", page.read_text())]
    assert dated == []


def test_documents_readme_fits_a_screen() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 45
