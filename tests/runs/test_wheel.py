"""The wheel, installed in an empty environment and used from somebody else's directory."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

from protocol.lifetime import dying_with_parent
from tests.fixtures import ROOT
from tests.fixtures.runs import SMALL, options, with_shadows

pytestmark = pytest.mark.slow

ROOMS = (
    "actors",
    "config",
    "controller",
    "engine",
    "envs",
    "learner",
    "protocol",
    "recipes",
    "supervisor",
    "telemetry",
)
BUILD_FILES = ("LICENSE", "README.md", "pyproject.toml", "run.py", "setup.py")


def run(*command: object, cwd: Path, **environment: str) -> str:
    """Run a command to its end, which is to be a success, and return its output."""
    ended = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        preexec_fn=dying_with_parent(),
    )
    assert ended.returncode == 0, ended.stdout
    return ended.stdout


def sources() -> list[str]:
    """Modules and data of the project that an installation needs, as paths below ROOT."""
    found = ["run.py"]
    for room in ROOMS:
        for file in (ROOT / room).rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts:
                found.append(file.relative_to(ROOT).as_posix())
    return sorted(found)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy: a build leaves files behind where its sources are."""
    copy = tmp_path_factory.mktemp("source")
    for name in BUILD_FILES:
        shutil.copy(ROOT / name, copy)
    for name in sources():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    built = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-index", "--no-build-isolation")
    run(*pip, copy, "-w", built, cwd=copy)
    return next(built.glob("foray-*.whl"))


@pytest.fixture(scope="module")
def bin_dir(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The commands of an environment that has the wheel, and borrows what that depends on."""
    directory = tmp_path_factory.mktemp("installed")
    venv.create(directory, symlinks=True)
    python = directory / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python)
    run(*pip, "install", "--no-deps", "--no-index", wheel, cwd=directory)
    borrowed = [path for path in sys.path if path.endswith("site-packages")]
    (site_packages,) = directory.glob("lib/python3*/site-packages")
    (site_packages / "borrowed.pth").write_text("\n".join(borrowed) + "\n")
    return directory / "bin"


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A directory in which a user has modules with the names of ours, and of others'."""
    return with_shadows(tmp_path / "mine", "random", "torch", "zmq")


def test_wheel_has_every_module_and_its_data_in_one_folder(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    in_wheel = sorted(name.removeprefix("foray/") for name in names if name.startswith("foray/"))
    assert in_wheel == sources()
    assert all(name.startswith(("foray/", "foray-")) for name in names)


def test_installed_command_knows_its_version_among_shadows(bin_dir: Path, elsewhere: Path) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert version in run(bin_dir / "foray", "--version", cwd=elsewhere)


def test_modules_on_pythonpath_shadow_none_of_ours(bin_dir: Path, tmp_path: Path) -> None:
    shadows = with_shadows(tmp_path / "mine")
    output = run(
        *(bin_dir / "foray", "play", "--watch", "expert"), cwd=shadows, PYTHONPATH=str(shadows)
    )
    assert "solved" in output


def test_installed_command_makes_a_run_and_its_report(bin_dir: Path, elsewhere: Path) -> None:
    settings = SMALL | {"run.dir": "a-run", "env.max_turns": "2", "run.max_updates": "1"}
    output = run(bin_dir / "foray", "--serial", *options(settings), cwd=elsewhere)
    assert json.loads((elsewhere / "a-run" / "summary.json").read_text())["updates"] == 1
    assert output.startswith("recipes: tiny, tiny-alfworld, serial, serial-tiny\n")
    assert "look at it: foray report a-run" in output
    run(bin_dir / "foray", "report", "a-run", cwd=elsewhere)
    assert "<svg" in (elsewhere / "a-run" / "report.html").read_text()


def test_plugin_does_nothing_in_a_vllm_of_somebody_else(bin_dir: Path, elsewhere: Path) -> None:
    """A vLLM that no run of ours started loads our plugin, too, and does not find our modules."""
    code = (
        "from importlib.metadata import entry_points\n"
        "(ours,) = entry_points(group='vllm.general_plugins', name='foray')\n"
        "print(ours.load()())"
    )
    assert run(bin_dir / "python", "-P", "-c", code, cwd=elsewhere) == "None\n"
