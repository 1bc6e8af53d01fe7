"""What a fork server does when one of its actors has lost the controller."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from actors.actor import ControllerLost
from actors.fleet import supervise


@pytest.mark.parametrize(("there", "lost"), [(True, False), (False, True)])
def test_an_actor_that_alone_has_lost_the_controller_is_replaced_and_the_others_play_on(tmp_path: Path, there: bool, lost: bool) -> None:
    played, other, waiting = tmp_path / "played", tmp_path / "other", tmp_path / "waiting"
    os.mkfifo(waiting)

    def loses_it_at_first() -> None:
        if not played.exists():
            played.touch()
            raise ControllerLost("the controller has not answered")
        waiting.write_text("the one in its place")

    def plays_on() -> None:
        other.write_text(waiting.read_text())

    assert supervise([plays_on, loses_it_at_first], lambda: there) is lost
    assert other.exists() is there, "else all begin again once the controller is found"
