"""A user's mistake is answered by one sentence: the setting, and what would be right."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config import Config, ConfigError
from config.options import (
    all_settings,
    kind_of,
    nest,
    tagged_sections,
)
from config.refusals import ALIASES, VALUES_ELSEWHERE, find_misfits
from config.resolve import resolve
from config.template_arguments import TEMPLATE_ARGUMENTS
from tests.fixtures.settings import expect_refusal, write_settings

SETTINGS = list(all_settings())


UNTAGGED = [name for name in SETTINGS if name.rpartition(".")[0] not in tagged_sections()]


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
    assert (
        f"there is no setting {wrong} (on the command line); did you mean {right}?"
        == expect_refusal(**{wrong: "1"})
    )


@pytest.mark.parametrize(("elsewhere", "ours"), ALIASES.items())
def test_name_of_another_system_is_answered_with_ours(elsewhere: str, ours: str) -> None:
    """Names that verl, TRL and others have are answered with the setting's name here."""
    settings = {*SETTINGS, *tagged_sections(), TEMPLATE_ARGUMENTS}
    assert settings.issuperset(re.split(" x | and ", ours))
    section = ours.partition(".")[0]
    assert f"; did you mean {ours}?" in expect_refusal(**{elsewhere: "1"})
    assert f"; did you mean {ours}?" in expect_refusal(**{f"{section}__{elsewhere}": "1"})


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
    message = expect_refusal(**{setting: value})
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
    file = write_settings(
        tmp_path,
        '[run]\nseed = "a"\nsede = 1\n[learner]\ngroup_size = 1\n[learner.loss]\ntype = "x"\n'
        'clip_low = "y"\n[env.settings]\nscene_size = "smal"\n',
    )
    first, *lines = expect_refusal(file, run__max_minutes="long", xyzzy="1").splitlines()
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
    """A mistake in one setting hides none in another."""
    alone = {
        misfit
        for name, value in values.items()
        for misfit in find_misfits(nest({name: value}), Config)
    }
    assert set(find_misfits(nest(values), Config)) == alone


def test_an_unknown_setting_without_a_near_one_is_answered_with_help() -> None:
    assert "run.py --help" in expect_refusal(xyzzy="1")


def test_an_unknown_setting_in_a_file_names_the_file(tmp_path: Path) -> None:
    file = write_settings(tmp_path, "[run]\nsede = 1\n")
    assert (
        expect_refusal(file) == f"there is no setting run.sede (in {file}); did you mean run.seed?"
    )


def test_an_unknown_section_is_answered_with_all_sections(tmp_path: Path) -> None:
    message = expect_refusal(write_settings(tmp_path, "[trainer]\n"))
    assert "[trainer]" in message
    assert "learner" in message


def test_a_setting_outside_any_section_is_refused(tmp_path: Path) -> None:
    assert "stands outside any section" in expect_refusal(write_settings(tmp_path, "seed = 1\n"))


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
    message = expect_refusal(**{name: text})
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
    message = expect_refusal(write_settings(tmp_path, toml))
    assert message.startswith("run.seed: ")
    assert "Seed of everything random" in message


def test_an_ill_typed_item_of_a_list_names_the_setting(tmp_path: Path) -> None:
    assert expect_refusal(
        write_settings(tmp_path, "[env.settings]\ntask_types = [1]\n")
    ).startswith("env.settings.task_types: expected `str`, got `int`")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("engine.port", "65536"),
        ("learner.group_size", "1"),
        ("learner.algorithm.discount", "1.01"),
        ("run.max_minutes", "-1"),
        ("run.seed", "-1"),
    ],
)
def test_a_value_out_of_bounds_is_refused(name: str, text: str) -> None:
    assert expect_refusal(**{name: text}).startswith(f"{name}: expected ")


@given(st.sampled_from(SETTINGS), st.text(max_size=12))
def test_any_text_for_any_setting_is_taken_or_refused_by_name(name: str, text: str) -> None:
    try:
        resolve(overrides={name: text})
    except ConfigError as error:
        assert name in str(error)


def test_a_section_inside_another_is_checked_as_all_are(tmp_path: Path) -> None:
    assert "there is no setting control.t2po.alpa" in expect_refusal(
        write_settings(tmp_path, "[control.t2po]\nalpa = 1\n")
    )
    assert expect_refusal(write_settings(tmp_path, "[control.t2po]\nalpha = 2\n")).startswith(
        "control.t2po.alpha: expected "
    )


def test_a_file_that_does_not_exist_is_named(tmp_path: Path) -> None:
    assert (
        expect_refusal(tmp_path / "none.toml")
        == f"--config: there is no file {tmp_path / 'none.toml'}"
    )


def test_a_directory_is_no_file_of_settings(tmp_path: Path) -> None:
    assert expect_refusal(tmp_path).startswith(f"--config: {tmp_path} cannot be read")


@pytest.mark.parametrize(
    "content", [b"[run\n", b"\xff\xfe", b"run = \n"], ids=["syntax", "encoding", "no value"]
)
def test_a_broken_file_is_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "broken.toml"
    file.write_bytes(content)
    assert expect_refusal(file).startswith(f"--config: {file} is not valid TOML")


def test_a_setting_of_another_environment_is_refused(tmp_path: Path) -> None:
    assert "there is no setting env.settings.topk" in expect_refusal(env__settings__topk="3")
    file = write_settings(tmp_path, '[env]\nname = "search"\n[env.settings]\ntopk = 0\n')
    assert expect_refusal(file).startswith("env.settings.topk: expected ")
