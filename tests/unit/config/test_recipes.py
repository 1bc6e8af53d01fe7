"""Recipes: each runs, each number has its source, and they compose."""

from __future__ import annotations

import itertools
import re
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from config import Config, ConfigError
from config.consistency import check_consistency
from config.options import flatten, flatten_config
from config.recipes import (
    DIRECTORY,
    is_own_recipe,
    own_recipes,
    recipe_names,
    with_absolute_paths,
)
from config.resolve import (
    find_changes,
    read_recipe,
    resolve,
    resolve_new,
    resolve_recorded,
    to_toml,
)
from envs.registry import make_environment
from envs.settings import AlfWorldSettings
from supervisor.cli.train import print_settings
from supervisor.resume import resolve_resumed

ENVIRONMENTS = ("alfworld", "webshop", "search")
CONTROLS = ("t2po-paper", "t2po-code")
MACHINES = ("1x80gb", "8x80gb", "2-nodes")
COMPOSED = [",".join(names) for names in itertools.product(ENVIRONMENTS, CONTROLS, MACHINES)] + [
    ",".join(names) for names in itertools.product(ENVIRONMENTS, CONTROLS)
]

PAPER_OF_ENVIRONMENT = {
    "alfworld": {
        "learner.groups_per_update": 16,
        "learner.group_size": 8,
        "sampling.max_tokens": 500,
        "engine.max_model_len": 2048 + 500,
        "env.max_turns": 50,
        "env.history": 2,
        "learner.algorithm.normalize_advantages": True,
        "learner.algorithm.anchor_similarity": 1.0,
        "learner.kl_coef": 0.01,
        "eval.temperature": 0.6,
        "eval.top_p": 0.95,
        "eval.top_k": 20,
    },
    "webshop": {
        "learner.groups_per_update": 16,
        "learner.group_size": 8,
        "sampling.max_tokens": 300,
        "engine.max_model_len": 4096 + 300,
        "env.max_turns": 15,
        "env.history": 2,
        "learner.algorithm.normalize_advantages": False,
        "learner.algorithm.anchor_similarity": 1.0,
        "learner.kl_coef": 0.0,
        "eval.temperature": 0.6,
        "eval.top_p": 0.95,
        "eval.top_k": 20,
    },
    "search": {
        "learner.groups_per_update": 256,
        "learner.group_size": 5,
        "sampling.max_tokens": 500,
        "engine.max_model_len": 4096 + 500,
        "env.max_turns": 4,
        "env.history": 4,
        "learner.algorithm.normalize_advantages": True,
        "learner.algorithm.anchor_similarity": 0.9,
        "learner.kl_coef": 0.0,
        "eval.temperature": 0.0,
    },
}
"""Settings that T2PO's paper has for each environment."""

PAPER_OF_OBJECTIVE = {
    "learner.algorithm.type": "gigpo",
    "learner.algorithm.discount": 0.95,
    "learner.algorithm.step_weight": 1.0,
    "learner.algorithm.invalid_penalty": 0.1,
    "learner.loss.type": "ppo",
    "learner.loss.clip_low": 0.2,
    "learner.loss.clip_high": 0.2,
    "learner.loss_reduction": "token",
    "learner.gradient_clip": 1.0,
    "learner.learning_rate": 1e-6,
}
"""Settings that T2PO's paper has for all environments, with a pretrained model."""

CONTROL = {
    "t2po-paper": {
        "control.t2po.score": "paper",
        "control.t2po.alpha": 0.4,
        "control.t2po.top_j": 20,
        "control.t2po.delta_statistic": "mean",
        "control.t2po.window": 7,
        "control.t2po.min_thinking": 16,
        "control.t2po.epsilon": 1e-4,
        "control.t2po.intervention_rate": 0.0,
        "control.t2po.turn_mean": "geometric",
        "control.t2po.turn_skip": 0,
        "control.t2po.eta": 1e-3,
        "control.t2po.resample_rate": 0.0,
        "control.t2po.max_resamples": 2,
        "control.mode": "t2po",
        "control.max_thinking": 450,
        "control.on_cut": "queue",
    },
    "t2po-code": {
        "control.t2po.score": "code",
        "control.t2po.alpha": 0.4,
        "control.t2po.top_j": 1,
        "control.t2po.delta_statistic": "max",
        "control.t2po.window": 19,
        "control.t2po.min_thinking": 0,
        "control.t2po.epsilon": 1e-4,
        "control.t2po.intervention_rate": 0.0,
        "control.t2po.turn_mean": "arithmetic",
        "control.t2po.turn_skip": 33,
        "control.t2po.eta": 0.3,
        "control.t2po.resample_rate": 0.0,
        "control.t2po.max_resamples": 2,
        "control.mode": "t2po",
        "control.max_thinking": 450,
        "control.on_cut": "close",
    },
}
"""Settings of control in the paper, with those it does not publish, and in its authors' code."""


def taken(names: str, **overrides: str) -> dict[str, Any]:
    """The settings of a run that is given these recipes."""
    return flatten_config(resolve(None, {"recipe": names, **overrides}))


def written(file: Path, toml: str) -> str:
    file.write_text(toml)
    return str(file)


def refused(names: str) -> str:
    with pytest.raises(ConfigError) as error:
        resolve(None, {"recipe": names})
    return str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("name", recipe_names())
def test_recipe_alone_makes_a_run(name: str) -> None:
    config = resolve(overrides={"recipe": name})
    environment = make_environment(config.env.name, **config.environment_settings())
    assert environment.name == config.env.name


@pytest.mark.parametrize("name", recipe_names())
def test_recipe_says_where_its_numbers_are_from(name: str) -> None:
    text = (DIRECTORY / f"{name}.toml").read_text()
    numbers = re.findall(r"^\w+ = [\d.].*$", text, re.MULTILINE)
    assert text.startswith("# ") and [line for line in numbers if "  # " not in line] == []
    assert re.search("paper|code|measurements|docs/guides", text)


@pytest.mark.parametrize("name", recipe_names())
def test_recipe_is_named_where_recipes_are_looked_up(name: str) -> None:
    page = DIRECTORY.parent / "docs" / "reference" / "recipes.md"
    assert f"`{name}`" in page.read_text()


@pytest.mark.parametrize("names", COMPOSED)
def test_recipes_that_compose_contradict_each_other_in_nothing(names: str) -> None:
    """Each has in the whole what it has alone."""
    values = taken(names)
    for name in names.split(","):
        settings = read_recipe(name)
        assert {full: values[full] for full in settings} == settings


@pytest.mark.parametrize("kind", [ENVIRONMENTS, CONTROLS], ids=["environments", "controls"])
def test_recipes_of_one_kind_set_the_same(kind: tuple[str, ...]) -> None:
    """One after the other leaves nothing of the first, in a run that is resumed, too."""
    sets = [
        {full for full in read_recipe(name) if not full.startswith("env.settings.")}
        for name in kind
    ]
    assert all(names == sets[0] for names in sets)


@pytest.mark.parametrize("environment", ENVIRONMENTS)
@pytest.mark.parametrize("machine", MACHINES)
def test_recipe_of_an_environment_has_the_numbers_of_the_paper(
    environment: str, machine: str
) -> None:
    published = PAPER_OF_ENVIRONMENT[environment] | PAPER_OF_OBJECTIVE | CONTROL["t2po-paper"]
    values = taken(f"{environment},t2po-paper,{machine}")
    assert {full: values[full] for full in published} == published


@pytest.mark.parametrize("name", CONTROLS)
def test_recipe_of_control_has_the_numbers_of_its_source(name: str) -> None:
    assert read_recipe(name) == CONTROL[name]


def test_recipe_gives_way_to_a_later_one_a_file_and_the_command_line(tmp_path: Path) -> None:
    file = Path(written(tmp_path / "settings.toml", "[env]\nmax_turns = 7\n"))
    overrides = {"recipe": "webshop,alfworld"}
    assert resolve(None, overrides).env.max_turns == 50
    assert resolve(None, {"recipe": "alfworld,webshop"}).env.max_turns == 15
    assert resolve(file, overrides).env.max_turns == 7
    assert resolve(file, {**overrides, "env.max_turns": "9"}).env.max_turns == 9


def test_recipe_ends_where_a_file_chooses_another_loss(tmp_path: Path) -> None:
    file = Path(written(tmp_path / "settings.toml", '[learner.loss]\ntype = "tis"\n'))
    assert resolve(file, {"recipe": "alfworld"}).learner.loss == Config().learner.loss


def test_recipe_of_an_environment_ends_with_it() -> None:
    assert "topk" not in resolve(None, {"recipe": "search,alfworld"}).env.settings
    assert taken("search", env="webshop")["learner.groups_per_update"] == 256


@pytest.mark.parametrize(
    ("model", "environment", "serial", "names"),
    [
        ("tiny", "alfworld", False, ["tiny", "tiny-alfworld"]),
        ("tiny", "webshop", False, ["tiny", "tiny-webshop"]),
        ("tiny", "/games/mine.py:Mine", False, ["tiny"]),
        ("tiny", "search", True, ["tiny", "tiny-search", "serial", "serial-tiny"]),
        ("smollm2", "webshop", False, ["smollm2"]),
        ("smollm2", "alfworld", True, ["smollm2", "serial"]),
        ("Qwen/Qwen3-0.6B", "alfworld", False, []),
        ("Qwen/Qwen3-0.6B", "alfworld", True, ["serial"]),
        ("alfworld", "alfworld", False, []),  # somebody's directory
    ],
)
def test_recipes_that_a_run_takes_by_itself_follow_from_names(
    model: str, environment: str, serial: bool, names: list[str]
) -> None:
    assert own_recipes(model, environment, serial) == names


def test_recipe_that_names_something_else_after_a_model_is_chosen_by_name() -> None:
    own = {name for name in recipe_names() if is_own_recipe(name)}
    assert {"smollm2", "tiny-alfworld", "serial-tiny"} < own and "smollm2-tools" not in own


OWN = [(name, full) for name in recipe_names() if is_own_recipe(name) for full in read_recipe(name)]


@pytest.mark.parametrize(("name", "full"), OWN)
def test_own_recipe_holds_until_the_setting_is_set(name: str, full: str) -> None:
    settings = read_recipe(name)
    chosen = {
        "model": settings.get("model.name", "tiny"),
        "env": settings.get("env.name", "alfworld"),
    }
    serial = name.startswith("serial")
    assert flatten_config(resolve(None, chosen, serial))[full] == settings[full]
    if full in ("model.name", "env.name"):
        return
    default = flatten_config(Config())[full]
    set_here = resolve(None, {**chosen, full: str(default)}, serial)
    assert flatten_config(set_here)[full] == default


def test_own_recipe_that_is_named_stays_below_the_others() -> None:
    named = resolve_new(None, {"recipe": "webshop,tiny"}, serial=False)
    assert named.config == resolve(None, {"recipe": "webshop", "model": "tiny"})
    assert named.recipes == ["tiny", "tiny-webshop", "webshop"]
    assert named.config.model.tiny.vocabulary == 2048 and named.config.env.max_turns == 15


def test_sections_have_what_a_model_without_a_recipe_takes(tmp_path: Path) -> None:
    check_consistency(Config())
    config = resolve(None, {"model": str(tmp_path), "env": "webshop"})
    on_gpus = {"learner.precision", "engine.dtype"}  # where this machine has them
    assert set(find_changes(config)) - on_gpus == {"model.name", "env.name"}
    assert (config.control.t2po.window, config.control.t2po.min_thinking) == (7, 16)
    assert config.warm_start.episodes == 0


def test_run_without_options_has_the_defaults_and_the_recipe_of_the_tiny_policy() -> None:
    config = resolve()
    changes = {full: value for full, (_, value) in find_changes(config).items()}
    own = read_recipe("tiny") | read_recipe("tiny-alfworld")
    assert changes | {"model.name": "tiny", "env.name": "alfworld"} == own
    assert config.env.settings == msgspec.to_builtins(AlfWorldSettings())


def test_recipe_of_ones_own_is_a_path(tmp_path: Path) -> None:
    mine = written(tmp_path / "mine.toml", "[learner]\ngroup_size = 16\n")
    resolution = resolve_new(None, {"recipe": f"alfworld, {mine}"}, serial=False)
    assert resolution.config.learner.group_size == 16
    assert resolution.config.learner.groups_per_update == 16
    assert resolution.recipes == ["tiny", "tiny-alfworld", "alfworld", mine]
    assert resolution.sources["learner.group_size"] == f"recipe {mine}"


def test_recipe_of_ones_own_is_found_from_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert with_absolute_paths("alfworld,mine.toml") == f"alfworld,{tmp_path / 'mine.toml'}"


def test_recipe_that_does_not_exist_is_answered_with_the_nearest_and_all() -> None:
    message = refused("alfwrld")
    assert message.startswith("--recipe: there is no recipe 'alfwrld'; there are: 1x80gb, ")
    assert message.endswith("; did you mean alfworld?")
    assert all(name in message for name in recipe_names())


def test_recipe_with_a_setting_that_there_is_not_names_file_and_setting(tmp_path: Path) -> None:
    mine = written(tmp_path / "mine.toml", "[learner]\ngroup_sise = 16\n")
    assert refused(mine) == (
        f"there is no setting learner.group_sise (in recipe {mine}); did you mean "
        "learner.group_size?"
    )
    section = written(tmp_path / "section.toml", "[trainer]\n")
    assert "[trainer]" in refused(section) and section in refused(section)


def test_recipe_that_is_no_file_of_settings_is_named(tmp_path: Path) -> None:
    gone = str(tmp_path / "gone.toml")
    assert refused(gone) == f"--recipe: there is no file {gone}"
    broken = written(tmp_path / "broken.toml", "[run\n")
    assert refused(broken).startswith(f"--recipe: {broken} is not valid TOML")


def test_threshold_of_a_recipe_is_fixed_unless_it_has_a_rate(tmp_path: Path) -> None:
    fixed = written(tmp_path / "fixed.toml", "[control.t2po]\nepsilon = 0.5\n")
    assert taken(fixed)["control.t2po.intervention_rate"] == 0
    both = written(tmp_path / "both.toml", "[control.t2po]\neta = 1.0\nresample_rate = 0.25\n")
    assert taken(both)["control.t2po.resample_rate"] == 0.25
    assert taken(f"{both},{fixed}")["control.t2po.resample_rate"] == 0.25


def begun(run_dir: Path, **overrides: str) -> Config:
    """The settings of a run, which its directory records."""
    run_dir.mkdir(exist_ok=True)
    config = resolve(None, {**overrides, "run.dir": str(run_dir)})
    (run_dir / "config.toml").write_text(to_toml(config))
    return config


@pytest.mark.parametrize("names", ["webshop,tiny", "alfworld,t2po-paper,tiny", "t2po-code"])
def test_command_that_began_a_run_goes_on_with_it(tmp_path: Path, names: str) -> None:
    """As a cluster's script does."""
    config = begun(tmp_path, recipe=names, env="webshop")
    resolution, changes = resolve_resumed(tmp_path, {"recipe": names, "env": "webshop"})
    assert (resolution.config, changes) == (config, "")


@pytest.mark.parametrize("model", ["tiny", "a model"])
@pytest.mark.parametrize("before", ["", *CONTROLS])
@pytest.mark.parametrize("after", CONTROLS)
def test_recipe_given_to_a_run_that_is_resumed_is_as_in_a_new_one(
    tmp_path: Path, model: str, before: str, after: str
) -> None:
    if model != "tiny":
        model = str(tmp_path)
    begun(tmp_path / "run", recipe=before, model=model)
    resolution, _ = resolve_resumed(tmp_path / "run", {"recipe": after})
    assert resolution.config.control == resolve(None, {"recipe": after, "model": model}).control
    assert resolution.recipes == [after]


def test_recipe_that_a_run_cannot_go_on_with_is_refused(tmp_path: Path) -> None:
    begun(tmp_path, recipe="webshop")
    with pytest.raises(ConfigError, match=r"^env.name: "):
        resolve_resumed(tmp_path, {"recipe": "alfworld"})


def test_recorded_settings_give_way_to_a_recipe_and_that_to_an_option(tmp_path: Path) -> None:
    begun(tmp_path, recipe="t2po-paper")
    record = tmp_path / "config.toml"
    resolution = resolve_recorded(record, {"recipe": "t2po-code", "control.t2po.eta": "0.2"})
    assert resolution.config.control.t2po.top_j == 1
    assert resolution.config.control.t2po.eta == 0.2
    assert resolution.sources["control.t2po.top_j"] == "recipe t2po-code"
    assert resolution.sources["learner.group_size"] == str(record)


def test_recorded_settings_hold_against_the_runs_own_recipe(tmp_path: Path) -> None:
    """It is below the record, as it was below what began the run, and is not said to hold."""
    begun(tmp_path, **{"learner.learning_rate": "0.5"})
    resolution = resolve_recorded(tmp_path / "config.toml", {"recipe": "tiny,t2po-code"})
    assert resolution.config.learner.learning_rate == 0.5
    assert resolution.recipes == ["t2po-code"]


def test_dry_run_says_which_recipes_hold_and_marks_what_they_change(
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = {"env": "webshop", "recipe": "t2po-code", "seed": "7"}
    resolution = resolve_new(None, settings, serial=False)
    print_settings(resolution)
    text = capsys.readouterr().out
    assert "# recipes: tiny, tiny-webshop, t2po-code\n" in text
    assert "\nvocabulary = 2048  # default 1024; recipe tiny-webshop\n" in text
    assert "\nturn_skip = 33  # default 0; recipe t2po-code\n" in text
    assert "\nseed = 7  # default 0; command line\n" in text
    marked = re.findall(r"^\w+ = .*  # default ", text, re.MULTILINE)
    assert len(marked) == len(find_changes(resolution.config))
    assert flatten(tomllib.loads(text)) == flatten_config(resolution.config)


def test_changes_are_from_the_defaults_of_the_types_that_are_chosen() -> None:
    config = resolve(None, {"recipe": "alfworld", "learner.loss.clip_high": "0.3"})
    changes = find_changes(config)
    assert changes["learner.loss.type"] == ("tis", "ppo")
    assert changes["learner.loss.clip_high"] == (0.2, 0.3)
    assert changes["env.settings.scene_size"] == ("small", "real")
    assert "learner.loss.clip_low" not in changes
