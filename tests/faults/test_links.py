"""Each connection of a run is cut in each way that networks have.

The run goes on, nothing is lost, and nothing comes twice.

One run for all: it trains while its links are cut one after another, and its records are looked at
each time.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.fixtures.links import HEARTBEAT, SLOW, LinkedRun, linked_run
from tests.fixtures.runs import trajectories_of

LINKS = (
    "actor-controller",
    "actor-shard",
    "actor-learner",
    "learner-controller",
    "shard-controller",
    "engine-controller",
    "engine-shard",
    "stats",
)
MORE_UPDATES = 4
"""Updates after a cut that need every link.

With max_staleness 1, three at most are made of what was admitted before it.
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LinkedRun]:
    with linked_run(tmp_path_factory.mktemp("links")) as made:
        yield made


def goes_on(run: LinkedRun) -> None:
    """Assert that more updates are made and recorded.

    Signals come from the engine, and the shard is heard of.
    """
    updates = run.updates()
    frames = run.controller.turn_service.signals.frames
    cut = time.monotonic()
    run.until(lambda: run.updates() >= updates + MORE_UPDATES)
    run.until(lambda: run.controller.turn_service.signals.frames > frames)
    run.until(lambda: run.controller.shards.last_heard(1) > cut)
    numbers = run.recorded()
    assert numbers == list(range(1, len(numbers) + 1)), "each update is recorded once"


@pytest.mark.parametrize("way", ["both ends", "the client's end", "the server's end", "silence"])
@pytest.mark.parametrize("link", LINKS)
def test_a_run_goes_on_when_a_link_is_cut(run: LinkedRun, link: str, way: str) -> None:
    run.until(lambda: run.connected(link) >= 1)
    connections = run.proxied(run.proxies[link].cut(way))
    assert connections >= 1
    run.until(lambda: run.connected(link) >= connections)
    goes_on(run)


@pytest.mark.parametrize("link", LINKS)
def test_a_run_goes_on_over_a_slow_link(run: LinkedRun, link: str) -> None:
    assert SLOW < HEARTBEAT
    run.proxies[link].delay = SLOW
    goes_on(run)
    run.proxies[link].delay = 0.0


def test_after_all_that_nothing_was_lost_and_nothing_was_trained_on_twice(run: LinkedRun) -> None:
    summary = run.stop()
    numbers = run.recorded()
    assert numbers == list(range(1, len(numbers) + 1)) and summary["updates"] == len(numbers)
    assert summary["dropped"].keys() <= {"canceled"}, "what was under way at the end"
    keys = [t.key for t in trajectories_of(run.directory) if not t.key.evaluation]
    groups = {key.group for key in keys}
    assert len(keys) == len(set(keys)) and groups >= set(range(2 * len(numbers))), (
        "each group of each update, once"
    )
