"""Settings that cannot hold together, and values that nothing could work with, are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from config.resolve import resolve
from tests.fixtures.settings import expect_refusal, write_settings


def test_a_number_that_is_infinite_is_refused(tmp_path: Path) -> None:
    file = write_settings(tmp_path, "[run]\nmax_minutes = inf\n")
    assert expect_refusal(run__max_minutes="inf").startswith(
        "run.max_minutes: a number must be finite"
    ) and expect_refusal(file) == expect_refusal(run__max_minutes="inf")


def test_a_budget_of_thinking_that_no_response_reaches_is_refused() -> None:
    assert "sampling.max_tokens" in expect_refusal(control__mode="budget")
    assert (
        resolve(None, {"control.mode": "budget", "control.max_thinking": "19"}).control.max_thinking
        == 19
    )


def test_the_authors_score_has_no_geometric_mean() -> None:
    assert "control.t2po.turn_mean" in expect_refusal(control__t2po__score="code")


def test_settings_that_cannot_hold_together_are_both_named() -> None:
    message = expect_refusal(sampling__max_tokens="2000")
    assert "sampling.max_tokens: responses of 2000 tokens" in message
    assert "engine.max_model_len (1024)" in message


def test_a_context_that_is_too_short_for_a_model_that_thinks_says_what_to_set() -> None:
    """The length of its responses follows from the model: nobody has set it."""
    message = expect_refusal(model="Qwen/Qwen3-4B", engine__max_model_len="2048")
    assert "set the former to 1024 or less, or the latter to 4096 or more" in message


@pytest.mark.parametrize(
    ("together", "named", "instead"),
    [
        (
            {"algorithm": "reinforce++", "learner__algorithm__normalize_advantages": "false"},
            "learner.algorithm.normalize_advantages",
            "gigpo or grpo or gae",
        ),
        ({"algorithm": "gigpo", "learner__loss": "vtrace"}, "learner.loss", "gae"),
        ({"learner__publish_lag": "2"}, "learner.publish_lag", "learner.max_staleness"),
        ({"learner__devices": "0,1"}, "learner.devices", "learner.ranks"),
        ({"learner__reference_every": "5"}, "learner.reference_every", "learner.kl_coef"),
        (
            {"algorithm": "rloo", "learner__algorithm__normalize_advantages": "true"},
            "learner.algorithm.normalize_advantages",
            "gigpo or grpo or gae",
        ),
        (
            {"algorithm": "gae", "learner__filter_groups": "true"},
            "learner.filter_groups",
            "learner.algorithm gae",
        ),
        ({"learner__loss__mis_low": "0.1"}, "learner.loss.mis_low", "learner.loss is tis"),
        (
            {"control__decide_in": "engine", "control__signal": "stream"},
            "control.decide_in",
            "control.signal stream",
        ),
        ({"engine__urls": "http://n:1", "engine__count": "2"}, "engine.count", "engine.urls"),
        ({"engine__urls": "http://n:1", "engine__port": "9"}, "engine.port", "engine.urls"),
        ({"engine__urls": "http://n:1", "engine__devices": "0"}, "engine.devices", "engine.urls"),
        (
            {"engine__urls": "http://n:1", "engine__extra_args": "-x"},
            "engine.extra_args",
            "engine.urls",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_settings_that_cannot_hold_together_are_refused(
    together: dict[str, str], named: str, instead: str
) -> None:
    message = expect_refusal(**together)
    assert message.startswith(f"{named}: ") and instead in message


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8000",
        "127.0.0.1:8000",
        "node7",
        "http://",
        "http://node7:eight",
        "tcp://node7:8000",
    ],
)
def test_an_address_of_an_engine_that_is_none_is_refused_with_how_it_is_written(
    url: str,
) -> None:
    said = expect_refusal(engine__urls=f"http://node6:8000,{url}")
    assert said.startswith("engine.urls: ") and repr(url) in said and "http://HOST:PORT" in said


def test_an_engine_may_be_behind_a_proxy() -> None:
    urls = ["https://proxy/engine", "http://127.0.0.1:8000/", "http://[::1]:8000"]
    assert resolve(overrides={"engine.urls": ",".join(urls)}).engine.urls == urls


def test_a_model_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    message = expect_refusal(model=str(tmp_path / "no-model"))
    assert message.startswith("model.name: ")
    assert "directory" in message


def test_consistency_of_a_run_that_is_mistyped_asks_no_hub_and_names_the_nearest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever runs are; the name of a model at the hub has an owner that is no such directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine" / "first").mkdir(parents=True)
    (tmp_path / "mine" / "first" / "config.toml").touch()
    said = expect_refusal(model="mine/frst@best")
    assert (
        said == "model.name: there is no run and no directory mine/frst; did you mean mine/first?"
    )
    for name in ("runs/a", "./a", "../a"):
        assert f"no directory {name}" in expect_refusal(model=name)
    assert resolve(None, {"model": "yours/first@main"}).model.name == "yours/first@main"


def test_an_address_that_others_reach_needs_a_token() -> None:
    message = expect_refusal(dashboard__host="0.0.0.0")
    assert message.startswith("dashboard.token: ") and "0.0.0.0" in message
    allowed = resolve(None, {"dashboard.host": "0.0.0.0", "dashboard.token": "x"})
    assert allowed.dashboard.token == "x"
