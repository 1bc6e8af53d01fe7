"""Every setting as an option: it says what it does, and has bounds and names of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

import config
from config.options import (
    SHORT_NAMES,
    all_settings,
    description,
    kind_of,
    tagged_sections,
)
from tests.fixtures.settings import expect_refusal

SETTINGS = list(all_settings())


NUMBERS = [
    name
    for name, field in all_settings().items()
    if isinstance(kind_of(field), msgspec.inspect.IntType | msgspec.inspect.FloatType)
]


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_says_what_it_does(name: str) -> None:
    assert description(all_settings()[name])


@pytest.mark.parametrize("name", NUMBERS)
def test_every_number_has_bounds_and_so_refuses_nan(name: str) -> None:
    assert name in expect_refusal(**{name: "nan", **of_type(name)})


def of_type(name: str) -> dict[str, str]:
    """The type of a tagged section that has this setting."""
    section, _, own = name.rpartition(".")
    types = tagged_sections().get(section, {})
    return {f"{section}.type": kind for kind, names in types.items() if own in names}


@pytest.mark.parametrize(("short", "full"), SHORT_NAMES.items())
def test_every_short_name_is_a_setting_and_not_its_own(short: str, full: str) -> None:
    assert full in SETTINGS
    assert short not in SETTINGS


def test_settings_import_nothing_heavy() -> None:
    heavy = (
        "import sys, config.resolve; "
        "print(sorted({'torch', 'vllm', 'numpy', 'transformers', 'zmq'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", heavy],
        cwd=Path(config.__file__).parent.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == "[]"
