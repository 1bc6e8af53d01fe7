"""What a job leaves on memory, and who removes it."""

import subprocess
import sys
from pathlib import Path

import pytest

from config import ConfigError
from supervisor.job import prepare, weights_dir
from supervisor.settings import resolve


def test_weights_of_a_killed_supervisor_are_removed_and_those_of_a_living_one_are_not(tmp_path: Path):
    code = f"from pathlib import Path; from supervisor.job import weights_dir; print(weights_dir(Path({str(tmp_path)!r})))"
    ended = Path(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip())
    assert ended.is_dir()
    first, second = Path(weights_dir(tmp_path)), Path(weights_dir(tmp_path))
    assert not ended.exists() and first.is_dir() and second.is_dir() and first != second


def test_what_is_not_ours_is_left_alone(tmp_path: Path):
    (tmp_path / "foray-notes").mkdir()
    weights_dir(tmp_path)
    assert (tmp_path / "foray-notes").is_dir()


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"env": "chess"}, "unknown environment 'chess'"), ({"env": "search", "search.corpus": "/nowhere"}, "search.corpus: /nowhere")],
)
def test_an_environment_that_cannot_be_made_is_refused_before_anything_is_written(tmp_path: Path, settings: dict[str, str], message: str):
    with pytest.raises(ConfigError, match=message):
        prepare(resolve(overrides=settings | {"run.dir": str(tmp_path / "run")}), resume=False)
    assert not (tmp_path / "run").exists()


def test_the_tiny_policy_cannot_start_on_questions_that_no_expert_knows(tmp_path: Path):
    questions = tmp_path / "mine.jsonl"
    questions.write_text("".join(f'{{"question": "Who is number {i}?", "answers": ["Nobody"]}}\n' for i in range(100)))
    settings = {"env": "search", "search.questions": str(questions), "run.dir": str(tmp_path / "run")}
    with pytest.raises(ConfigError, match=r"search\.questions; the tiny policy.*model\.name"):
        prepare(resolve(overrides=settings), resume=False)


def test_a_game_that_makes_no_sense_is_refused_before_anything_is_written(tmp_path: Path):
    for split in ("train", "valid_unseen"):
        trial = tmp_path / "games" / split / "pick_and_place_simple-1" / "trial"
        trial.mkdir(parents=True)
        (trial / "game.tw-pddl").write_text('{"pddl_problem": "(define)", "solvable": true}')
    settings = {"alfworld.data": str(tmp_path / "games"), "run.dir": str(tmp_path / "run")}
    with pytest.raises(ConfigError, match=r"alfworld\.data: .*train/pick_and_place_simple-1/trial/game\.tw-pddl: pddl_problem"):
        prepare(resolve(overrides=settings), resume=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("environment", ["textarena", "gymnasium"])
def test_the_tiny_policy_cannot_start_where_there_is_no_expert(tmp_path: Path, environment: str):
    with pytest.raises(ConfigError, match=rf"{environment} has no expert; the tiny policy.*model\.name"):
        prepare(resolve(overrides={"env": environment, "run.dir": str(tmp_path / "run")}), resume=False)
