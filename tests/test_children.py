"""How often a process may be started again."""

from __future__ import annotations

from supervisor.children import Restarts


def test_so_many_restarts_are_allowed_in_a_while_and_more_once_that_is_over():
    restarts = Restarts(limit=2, seconds=10.0)
    assert [restarts.allowed(now) for now in (0.0, 1.0, 2.0, 9.9)] == [True, True, False, False]
    assert restarts.allowed(10.5), "the first one is long ago"
    assert not restarts.allowed(10.6)
