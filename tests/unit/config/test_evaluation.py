"""Settings of evaluations: decoding, sets by name, and the plan of episodes."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config import ConfigError, EvalSection, EvalSetSection
from config.evaluation import plan_evaluation
from config.resolve import resolve, to_toml
from supervisor.resume import resolve_resumed
from tests.fixtures.runs import SMALL

SETS = """
[eval]
episodes = 7

[eval.sets.unseen]
tasks = 5
settings = {held_out = "valid_unseen"}

[eval.sets.seen]
first_task = 3

[eval.sets.seen.settings]
held_out = "valid_seen"

[eval.sets.plain]
"""


def written(tmp_path: Path, toml: str) -> Path:
    file = tmp_path / "settings.toml"
    file.write_text(toml)
    return file


def test_decoding_of_evaluations_is_that_of_training_unless_it_is_set() -> None:
    config = resolve(overrides={"sampling.temperature": "0.7"})
    assert config.decoding(evaluation=True) == config.decoding(evaluation=False) == (0.7, 0, 1.0)


def test_decoding_of_training_is_never_that_of_evaluations() -> None:
    given_settings = {"eval.temperature": "0.6", "eval.top_p": "0.95", "eval.top_k": "20"}
    config = resolve(overrides=given_settings)
    assert config.decoding(evaluation=True) == (0.6, 20, 0.95)
    assert config.decoding(evaluation=False) == (1.0, 0, 1.0)


def test_decoding_at_temperature_0_is_greedy_whatever_else_is_set() -> None:
    config = resolve(overrides={"recipe": "alfworld", "eval.temperature": "0"})
    assert config.decoding(evaluation=True).greedy
    assert config.decoding(evaluation=True) == (0.0, 0, 1.0)


@pytest.mark.parametrize(
    ("recipe", "decoding"),
    [
        ("alfworld", (0.6, 20, 0.95)),
        ("webshop", (0.6, 20, 0.95)),
        ("search", (0.0, 0, 1.0)),
        ("tiny", (1.0, 0, 1.0)),
    ],
)
def test_decoding_of_recipes_is_their_papers(recipe: str, decoding: tuple) -> None:
    assert resolve(overrides={"recipe": recipe}).decoding(evaluation=True) == decoding


@pytest.mark.parametrize("temperature", ["-0.5", "0.001", "-1.5"])
def test_decoding_at_an_impossible_temperature_is_refused(temperature: str) -> None:
    with pytest.raises(ConfigError, match=r"^eval\.temperature: "):
        resolve(overrides={"eval.temperature": temperature})


def test_sets_are_read_in_their_order_with_what_they_do_not_say(tmp_path: Path) -> None:
    config = resolve(written(tmp_path, SETS))
    planned = config.evaluation_plan().sets
    assert [(one.name, one.split, one.first_task, one.tasks) for one in planned] == [
        ("unseen", "held_out", 0, 5),
        ("seen", "held_out", 3, 7),
        ("plain", "held_out", 0, 7),
    ]
    assert config.own_settings_of_sets() == {
        "unseen": config.environment_settings() | {"held_out": "valid_unseen"},
        "seen": config.environment_settings() | {"held_out": "valid_seen"},
    }


def test_sets_survive_toml(tmp_path: Path) -> None:
    config = resolve(written(tmp_path, SETS), {"eval.sets.more.settings.task-types": "heat,cool"})
    assert config.eval.sets["more"].settings == {"task_types": ["heat", "cool"]}
    assert resolve(written(tmp_path, to_toml(config))) == config


def test_sets_of_a_file_are_gone_with_its_environment(tmp_path: Path) -> None:
    file = written(tmp_path, f'[env]\nname = "alfworld"\n{SETS}')
    config = resolve(file, {"env": "webshop", "eval.sets.test.tasks": "500"})
    assert list(config.eval.sets) == ["test"]


def test_sets_of_a_file_that_names_no_environment_are_those_of_the_run(tmp_path: Path) -> None:
    file = written(tmp_path, "[eval.sets.test]\ntasks = 5\n")
    assert list(resolve(file, {"env": "webshop"}).eval.sets) == ["test"]
    with pytest.raises(ConfigError, match=r"no setting eval\.sets\.unseen"):
        resolve(written(tmp_path, SETS), {"env": "webshop"})


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("eval.sets.a.taskss", "3", "did you mean eval.sets.a.tasks?"),
        ("eval.sets.a", "3", "there is no setting eval.sets.a "),
        ("eval.sets.a.settings.data_", "x", "there is no setting eval.sets.a.settings.data_"),
        ("eval.sets.a.tasks", "-1", "eval.sets.a.tasks: expected `int` >= 0"),
        ("eval.sets.a.split", "test", "eval.sets.a.split: 'test' is not one of held_out, train"),
        ("eval.sets.a.settings.held_out", "new", "eval.sets.a.settings.held_out: 'new' is not one"),
        ("eval.sets.A.tasks", "3", "'A' cannot be a set's name"),
    ],
)
def test_sets_that_do_not_fit_are_refused_by_name(name: str, text: str, words: str) -> None:
    with pytest.raises(ConfigError) as error:
        resolve(overrides={name: text})
    assert words in str(error.value)


def test_sets_may_change_when_a_run_is_resumed(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(to_toml(resolve(overrides=dict(SMALL))))
    resolution, changes = resolve_resumed(tmp_path, {"eval.sets.more.tasks": "3"})
    assert (
        list(resolution.config.eval.sets) == ["more"]
        and "eval.sets.more.tasks (empty) -> 3" in changes
    )


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(1, 6)), min_size=1, max_size=4),
    st.integers(1, 4),
)
def test_plan_deals_out_each_sample_of_each_task_once(
    sizes: list[tuple[int, int]], samples: int
) -> None:
    sets = {
        f"s{number}": EvalSetSection(first_task=first, tasks=tasks)
        for number, (first, tasks) in enumerate(sizes)
    }
    plan = plan_evaluation(EvalSection(samples=samples, sets=sets))
    dealt = [plan.locate(member) for member in range(plan.episodes)]
    assert sorted((one.set.name, one.task, one.sample) for one in dealt) == [
        (name, one.first_task + index, sample)
        for name, one in sets.items()
        for index in range(one.tasks)
        for sample in range(samples)
    ]
    assert [one.set.name for one in dealt] == sorted(one.set.name for one in dealt)
    for member in (-1, plan.episodes):
        with pytest.raises(IndexError, match=str(member)):
            plan.locate(member)


def test_plan_without_sets_numbers_tasks_as_members() -> None:
    plan = plan_evaluation(EvalSection(episodes=3))
    dealt = [plan.locate(member) for member in range(plan.episodes)]
    assert [(one.set.name, one.set.split, one.task) for one in dealt] == [
        ("", "held_out", 0),
        ("", "held_out", 1),
        ("", "held_out", 2),
    ]
