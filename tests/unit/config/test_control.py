"""Settings of control: a threshold that is given holds."""

from __future__ import annotations

from operator import attrgetter
from pathlib import Path

import pytest

from config.control import RATES
from config.resolve import resolve
from tests.fixtures.settings import write_settings


@pytest.mark.parametrize(("threshold", "rate"), RATES.items())
def test_a_threshold_that_is_given_is_fixed(threshold: str, rate: str, tmp_path: Path) -> None:
    get_rate = attrgetter(rate)
    assert get_rate(resolve(None, {threshold: "0.5"})) == 0
    run = write_settings(tmp_path, f"{threshold} = 0.5\n{rate} = 0.25")
    assert get_rate(resolve(run)) == 0.25
    assert get_rate(resolve(run, {threshold: "0.7"})) == 0
