"""Settings: what a user gets wrong is answered by one sentence that names the setting and what
would be right.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from operator import attrgetter
from pathlib import Path
from typing import Annotated

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import config
from config import Config, ConfigError, MisLoss, TisLoss
from config.defaults import OWN_MODEL_DEFAULTS, PRESETS, RATES, TINY_DEFAULTS, with_preset
from config.options import (
    SHORT_NAMES,
    all_settings,
    description,
    kind_of,
    nest,
    tagged_sections,
    values_of,
)
from config.refusals import ALIASES, VALUES_ELSEWHERE, find_misfits
from config.resolve import from_dict, resolve, to_toml
from envs.registry import BUILT_IN_SETTINGS
from envs.settings import AlfWorldSettings
from supervisor.cli.help import print_help

SETTINGS = list(all_settings())
UNTAGGED = [name for name in SETTINGS if name.rpartition(".")[0] not in tagged_sections()]
NUMBERS = [
    name
    for name, field in all_settings().items()
    if isinstance(kind_of(field), msgspec.inspect.IntType | msgspec.inspect.FloatType)
]


def written(tmp_path: Path, toml: str) -> Path:
    file = tmp_path / "settings.toml"
    file.write_text(toml)
    return file


def refused(file: Path | None = None, **overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        resolve(file, {name.replace("__", "."): text for name, text in overrides.items()})
    return str(error.value)


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_says_what_it_does(name: str) -> None:
    assert description(all_settings()[name])


def test_help_says_which_defaults_are_others_in_an_environment(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_help("all", Console(width=300))
    assert (
        "for RL to improve [default 0.47, search 0.35, webshop 0.25, other models 0.0]"
        in capsys.readouterr().out
    )


def test_help_gives_no_default_where_it_is_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    print_help("all", Console(width=300))
    said = capsys.readouterr().out
    assert "NODEFAULT" not in said and "[default ]" not in said and "[default []]" not in said


def test_a_number_that_is_infinite_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("[run]\nmax_minutes = inf\n")
    assert refused(run__max_minutes="inf").startswith(
        "run.max_minutes: a number must be finite"
    ) and refused(file) == refused(run__max_minutes="inf")


def test_a_budget_of_thinking_that_no_response_reaches_is_refused() -> None:
    assert "sampling.max_tokens" in refused(control__mode="budget")
    assert (
        resolve(None, {"control.mode": "budget", "control.max_thinking": "19"}).control.max_thinking
        == 19
    )


@pytest.mark.parametrize("name", NUMBERS)
def test_every_number_has_bounds_and_so_refuses_nan(name: str) -> None:
    assert name in refused(**{name: "nan", **of_type(name)})


def of_type(name: str) -> dict[str, str]:
    """The type of a tagged section that has this setting."""
    section, _, own = name.rpartition(".")
    types = tagged_sections().get(section, {})
    return {f"{section}.type": kind for kind, names in types.items() if own in names}


@pytest.mark.parametrize(("short", "full"), SHORT_NAMES.items())
def test_every_short_name_is_a_setting_and_not_its_own(short: str, full: str) -> None:
    assert full in SETTINGS
    assert short not in SETTINGS


def test_defaults_are_consistent() -> None:
    config = resolve()
    assert config == msgspec.structs.replace(Config(), env=config.env)
    assert config.env.settings == msgspec.to_builtins(AlfWorldSettings())


@pytest.mark.parametrize(
    ("environment", "full"),
    [(name, full) for name, others in TINY_DEFAULTS.items() for full in others],
)
def test_an_environments_defaults_hold_until_the_setting_is_set(
    environment: str, full: str, tmp_path: Path
) -> None:
    def value(config: Config) -> object:
        return value_of(config, full)

    other = TINY_DEFAULTS[environment][full]
    set_here = {"env": environment, full: str(value(Config()))}
    assert (
        value(resolve(None, {"env": environment}))
        == value(resolve(written(tmp_path, f'env.name = "{environment}"')))
        == other
    )
    assert value(resolve(None, set_here)) == value(Config()) != other


@pytest.mark.parametrize("environment", TINY_DEFAULTS)
def test_a_model_of_ones_own_plays_an_environment_as_others_know_it(
    environment: str, tmp_path: Path
) -> None:
    config = resolve(None, {"env": environment, "model": str(tmp_path)})
    assert config == resolve(
        written(tmp_path, f'[env]\nname = "{environment}"\n[model]\nname = "{tmp_path}"')
    )
    values = {
        full: value
        for full, value in values_of(config).items()
        if not full.startswith("env.settings.") and value != value_of(Config(), full)
    }
    assert values == OWN_MODEL_DEFAULTS | {"env.name": environment, "model.name": str(tmp_path)}


def value_of(settings: Config, full: str) -> object:
    return attrgetter(full)(settings)


@pytest.mark.parametrize(
    ("preset", "full"), [(name, full) for name, others in PRESETS.items() for full in others]
)
def test_a_preset_holds_until_the_setting_is_set(preset: str, full: str) -> None:
    assert value_of(resolve(None, {"control.preset": preset}), full) == PRESETS[preset][full]
    other = str(value_of(Config(), full))
    assert value_of(
        resolve(None, {"control.preset": preset, full: other, **_allowing(full, preset)}), full
    ) == value_of(Config(), full)


@pytest.mark.parametrize("model", [False, True], ids=["tiny", "a model"])
@pytest.mark.parametrize("recorded", PRESETS)
@pytest.mark.parametrize("given", PRESETS)
def test_a_preset_given_to_a_recorded_run_is_that_of_a_new_one(
    tmp_path: Path, recorded: str, given: str, model: bool
) -> None:
    name = str(tmp_path) if model else "tiny"
    had, new = (
        resolve(overrides={"model.name": name, "control.preset": preset})
        for preset in (recorded, given)
    )
    (tmp_path / "config.toml").write_text(to_toml(had))
    assert (
        resolve(tmp_path / "config.toml", with_preset({"control.preset": given}, had)).control
        == new.control
    )


def _allowing(full: str, preset: str) -> dict[str, str]:
    """What else must be set for a setting of the preset to be set back."""
    return (
        {"control.t2po.score": "paper"}
        if (preset, full) == ("code", "control.t2po.turn_mean")
        else {}
    )


def test_a_model_that_thinks_longer_is_judged_by_more_of_its_thoughts(tmp_path: Path) -> None:
    control = resolve(None, {"model": str(tmp_path)}).control
    assert (control.t2po.window, control.t2po.min_thinking) == (7, 16)


@pytest.mark.parametrize(("threshold", "rate"), RATES.items())
def test_a_threshold_that_is_given_is_fixed(threshold: str, rate: str, tmp_path: Path) -> None:
    assert value_of(resolve(None, {threshold: "0.5"}), rate) == 0
    run = written(tmp_path, f"{threshold} = 0.5\n{rate} = 0.25")
    assert value_of(resolve(run), rate) == 0.25
    assert value_of(resolve(run, {threshold: "0.7"}), rate) == 0


def test_the_authors_score_has_no_geometric_mean() -> None:
    assert "control.t2po.turn_mean" in refused(control__t2po__score="code")


def test_defaults_survive_toml(tmp_path: Path) -> None:
    assert resolve(written(tmp_path, to_toml(resolve()))) == resolve()


@given(
    st.text(st.characters(codec="utf-8"), max_size=20),
    st.floats(min_value=0, exclude_min=True, allow_nan=False, allow_infinity=False),
    st.lists(st.text(st.characters(codec="utf-8"), max_size=5), max_size=3),
)
def test_any_value_survives_toml(text: str, number: float, texts: list[str]) -> None:
    run = config.RunSection(dir=text, max_minutes=number)
    env = config.EnvSection(settings={"task_types": texts})
    settings = Config(run=run, env=env)
    assert from_dict(tomllib.loads(to_toml(settings))) == settings


def test_toml_describes_every_setting() -> None:
    lines = to_toml(Config()).splitlines()
    for name in values_of(Config()):
        assert f"# {description(all_settings()[name])}" in lines


def test_the_command_line_wins_over_the_file(tmp_path: Path) -> None:
    file = written(tmp_path, "[run]\nseed = 1\nmax_updates = 5\n")
    settings = resolve(file, {"seed": "2"})
    assert (settings.run.seed, settings.run.max_updates) == (2, 5)


@pytest.mark.parametrize(
    "name", ["max_staleness", "max-staleness", "learner.max_staleness", "learner.max-staleness"]
)
def test_a_setting_can_be_written_with_dashes_and_short(name: str) -> None:
    assert resolve(overrides={name: "3"}).learner.max_staleness == 3


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("learner.group_sise", "learner.group_size"),
        ("lerner.groups_per_update", "learner.groups_per_update"),
        ("actor", "actors"),
        ("sead", "seed"),
        ("group_size", "learner.group_size"),
        ("engine.kv_cache", "engine.kv_cache_gb"),
    ],
)
def test_an_unknown_setting_is_answered_with_the_nearest(wrong: str, right: str) -> None:
    assert f"there is no setting {wrong} (on the command line); did you mean {right}?" == refused(
        **{wrong: "1"}
    )


@pytest.mark.parametrize(("elsewhere", "ours"), ALIASES.items())
def test_name_of_another_system_is_answered_with_ours(elsewhere: str, ours: str) -> None:
    """Names that verl, TRL and others have are answered with the setting's name here."""
    assert all(name in [*SETTINGS, *tagged_sections()] for name in re.split(" x | and ", ours))
    section = ours.partition(".")[0]
    assert f"; did you mean {ours}?" in refused(**{elsewhere: "1"})
    assert f"; did you mean {ours}?" in refused(**{f"{section}__{elsewhere}": "1"})


@pytest.mark.parametrize(
    ("setting", "value", "answer"),
    [
        ("control__mode", "t2p0", "; did you mean t2po?"),
        ("algorithm", "gpro", "; did you mean grpo?"),
        ("algorithm", "ppo", "; here it is gae, with learner.loss ppo"),
        ("learner__loss", "gsppo", "; did you mean gspo?"),
        ("env__settings__scene_size", "smal", "; did you mean small?"),
        ("run__tracker", "xyzzy", "wandb"),
    ],
)
def test_enumerated_value_that_is_none_is_answered_with_the_nearest(
    setting: str, value: str, answer: str
) -> None:
    """A value that is not among those of a setting is answered with them, and the nearest."""
    message = refused(**{setting: value})
    assert f"{value!r} is not one of " in message and message.endswith(answer)
    assert len(message) < 200


@pytest.mark.parametrize("setting", VALUES_ELSEWHERE)
def test_value_of_another_system_is_none_of_ours(setting: str) -> None:
    """A value is only explained where it is no choice, and the explanation names one that is."""
    choices = [str(choice) for choice in kind_of(all_settings()[setting]).values]
    for value, ours in VALUES_ELSEWHERE[setting].items():
        assert value not in choices
        assert re.split("[,;:]", ours)[0] in choices


def test_all_that_is_wrong_with_settings_is_said_at_once(tmp_path: Path) -> None:
    """Every unknown name, type and bound is told, and those of a file with the file's name."""
    file = written(
        tmp_path,
        '[run]\nseed = "a"\nsede = 1\n[learner]\ngroup_size = 1\n[learner.loss]\ntype = "x"\n'
        'clip_low = "y"\n[env.settings]\nscene_size = "smal"\n',
    )
    first, *lines = refused(file, run__max_minutes="long", xyzzy="1").splitlines()
    assert first == "7 settings are wrong:"
    named = [re.match(r"  (?:there is no setting )?([\w.]+)", line)[1] for line in lines]
    assert set(named) == {
        "run.max_minutes",
        "xyzzy",
        "run.sede",
        "run.seed",
        "learner.loss.type",
        "learner.group_size",
        "env.settings.scene_size",
    }
    assert all(str(file) in line for line in lines[2:])
    assert not any(str(file) in line for line in lines[:2])


@given(st.dictionaries(st.sampled_from(UNTAGGED), st.one_of(st.none(), st.integers(), st.text())))
def test_find_misfits_finds_what_each_value_alone_is_refused_for(values: dict) -> None:
    """What is wrong with one setting hides nothing of what is wrong with another."""
    alone = {
        misfit
        for name, value in values.items()
        for misfit in find_misfits(nest({name: value}), Config)
    }
    assert set(find_misfits(nest(values), Config)) == alone


def test_an_unknown_setting_without_a_near_one_is_answered_with_help() -> None:
    assert "run.py --help" in refused(xyzzy="1")


def test_an_unknown_setting_in_a_file_names_the_file(tmp_path: Path) -> None:
    file = written(tmp_path, "[run]\nsede = 1\n")
    assert refused(file) == f"there is no setting run.sede (in {file}); did you mean run.seed?"


def test_an_unknown_section_is_answered_with_all_sections(tmp_path: Path) -> None:
    message = refused(written(tmp_path, "[trainer]\n"))
    assert "[trainer]" in message
    assert "learner" in message


def test_a_setting_outside_any_section_is_refused(tmp_path: Path) -> None:
    assert "stands outside any section" in refused(written(tmp_path, "seed = 1\n"))


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("run.seed", "two", "'two' is not a whole number"),
        ("run.seed", "1.5", "'1.5' is not a whole number"),
        ("run.max_minutes", "long", "'long' is not a number"),
        ("eval.control", "maybe", "'maybe' is not true or false"),
        ("control.mode", "t3po", "one of budget, off, t2po"),
    ],
)
def test_an_ill_typed_value_is_refused_with_what_is_expected(
    name: str, text: str, expected: str
) -> None:
    message = refused(**{name: text})
    assert message.startswith(f"{name}: ")
    assert expected in message


@pytest.mark.parametrize(
    "toml",
    [
        "[run]\nseed = 'a'\n",
        "[run]\nseed = 1.5\n",
        "[run]\nseed = true\n",
        "[run]\nseed = -1\n",
        "[run]\nseed = [1]\n",
    ],
)
def test_an_ill_typed_value_in_a_file_names_the_setting_and_its_meaning(
    tmp_path: Path, toml: str
) -> None:
    message = refused(written(tmp_path, toml))
    assert message.startswith("run.seed: ")
    assert "Seed of everything random" in message


def test_an_ill_typed_item_of_a_list_names_the_setting(tmp_path: Path) -> None:
    assert refused(written(tmp_path, "[env.settings]\ntask_types = [1]\n")).startswith(
        "env.settings.task_types: expected `str`, got `int`"
    )


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("engine.port", "65536"),
        ("learner.group_size", "1"),
        ("learner.algorithm.discount", "1.01"),
        ("run.max_minutes", "0"),
        ("run.seed", "-1"),
    ],
)
def test_a_value_out_of_bounds_is_refused(name: str, text: str) -> None:
    assert refused(**{name: text}).startswith(f"{name}: expected ")


def test_a_whole_number_will_do_for_a_fraction(tmp_path: Path) -> None:
    assert resolve(written(tmp_path, "[run]\nmax_minutes = 5\n")).run.max_minutes == 5.0


def test_a_list_is_written_with_commas() -> None:
    assert resolve(overrides={"env.settings.task_types": "pick, heat,,cool"}).env.settings[
        "task_types"
    ] == [
        "pick",
        "heat",
        "cool",
    ]


@pytest.mark.parametrize(
    ("text", "value"),
    [("true", True), ("Yes", True), ("1", True), ("false", False), ("NO", False), ("0", False)],
)
def test_a_switch_is_written_in_words_or_digits(text: str, value: bool) -> None:
    assert resolve(overrides={"eval.control": text}).eval.control is value


@given(st.sampled_from(SETTINGS), st.text(max_size=12))
def test_any_text_for_any_setting_is_taken_or_refused_by_name(name: str, text: str) -> None:
    try:
        resolve(overrides={name: text})
    except ConfigError as error:
        assert name in str(error)


def test_settings_that_cannot_hold_together_are_both_named() -> None:
    message = refused(sampling__max_tokens="2000")
    assert "sampling.max_tokens (2000)" in message
    assert "engine.max_model_len" in message


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
    message = refused(**together)
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
def test_an_address_of_an_engine_that_is_none_is_refused_with_how_it_is_written(url: str) -> None:
    said = refused(engine__urls=f"http://node6:8000,{url}")
    assert said.startswith("engine.urls: ") and repr(url) in said and "http://HOST:PORT" in said


def test_an_engine_may_be_behind_a_proxy() -> None:
    urls = ["https://proxy/engine", "http://127.0.0.1:8000/", "http://[::1]:8000"]
    assert resolve(overrides={"engine.urls": ",".join(urls)}).engine.urls == urls


def test_a_model_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    message = refused(model=str(tmp_path / "no-model"))
    assert message.startswith("model.name: ")
    assert "directory" in message


@pytest.mark.parametrize(
    "toml",
    [
        '[learner]\nloss = "mis"\n',
        '[learner.loss]\ntype = "mis"\n',
        '[learner.loss]\ntype = "mis"\nmis_low = 0.5\n',
    ],
)
def test_a_tagged_section_is_chosen_by_its_type(tmp_path: Path, toml: str) -> None:
    assert resolve(written(tmp_path, toml)).learner.loss == MisLoss()


def test_a_type_on_the_command_line_replaces_a_files_and_its_settings(tmp_path: Path) -> None:
    file = written(tmp_path, '[learner.loss]\ntype = "decoupled"\nclip_low = 0.1\ntis_cap = 3.0\n')
    loss = resolve(file, {"learner.loss": "tis"}).learner.loss
    assert loss == TisLoss(tis_cap=3.0)
    assert "learner.loss.clip_low" in refused(
        file, learner__loss="tis", learner__loss__clip_low="1"
    )


def test_a_section_inside_another_is_checked_as_all_are(tmp_path: Path) -> None:
    assert "there is no setting control.t2po.alpa" in refused(
        written(tmp_path, "[control.t2po]\nalpa = 1\n")
    )
    assert refused(written(tmp_path, "[control.t2po]\nalpha = 2\n")).startswith(
        "control.t2po.alpha: expected "
    )


def test_a_file_that_does_not_exist_is_named(tmp_path: Path) -> None:
    assert refused(tmp_path / "none.toml") == f"--config: there is no file {tmp_path / 'none.toml'}"


def test_a_directory_is_no_file_of_settings(tmp_path: Path) -> None:
    assert refused(tmp_path).startswith(f"--config: {tmp_path} cannot be read")


@pytest.mark.parametrize(
    "content", [b"[run\n", b"\xff\xfe", b"run = \n"], ids=["syntax", "encoding", "no value"]
)
def test_a_broken_file_is_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "broken.toml"
    file.write_bytes(content)
    assert refused(file).startswith(f"--config: {file} is not valid TOML")


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


def test_a_setting_of_another_environment_is_refused(tmp_path: Path) -> None:
    assert "there is no setting env.settings.topk" in refused(env__settings__topk="3")
    file = written(tmp_path, '[env]\nname = "search"\n[env.settings]\ntopk = 0\n')
    assert refused(file).startswith("env.settings.topk: expected ")


def test_the_settings_of_an_environment_end_with_it(tmp_path: Path) -> None:
    file = written(tmp_path, '[env]\nname = "search"\n[env.settings]\ntopk = 5\n')
    assert resolve(file).env.settings["topk"] == 5
    assert "topk" not in resolve(file, {"env": "webshop"}).env.settings


class Level(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Settings of somebody's environment."""

    level: Annotated[int, msgspec.Meta(description="Level to begin at", ge=1)] = 1


def test_an_environment_of_ones_own_validates_its_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BUILT_IN_SETTINGS, "mygame", Level)
    assert resolve(None, {"env": "mygame"}).env.settings == {"level": 1}
    assert resolve(None, {"env": "mygame", "env.settings.level": "3"}).env.settings == {"level": 3}
    message = refused(env="mygame", env__settings__level="0")
    assert message.startswith("env.settings.level: expected ") and "Level to begin at" in message
