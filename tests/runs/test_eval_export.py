"""`run.py eval` and `run.py export` on checkpoints of a run."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import msgspec
import pytest

from config import ConfigError, Job, ModelSection
from config.options import all_settings
from supervisor.cli.eval import (
    FIXED_SETTINGS,
    EvaluatedEpisode,
    build_results,
    choose_sets,
    evaluation_config,
)
from supervisor.cli.export import TrainingRecord, generation_config, model_card
from supervisor.cli.main import main
from supervisor.models import find_checkpoint, pin_checkpoint
from supervisor.recording import read_episodes
from telemetry.analysis.intervals import mean_interval
from telemetry.sinks.metrics_file import METRICS_FILE, read_metrics, select_kind
from tests.fixtures.runs import small_config

HEAT = "pick_heat_then_place_in_recep"


@pytest.mark.parametrize(
    ("suffix", "update"), [("", 2), ("@1", 1), ("@000001", 1), ("/checkpoints/000001", 1)]
)
def test_find_checkpoint_of_a_run_by_each_of_its_names(
    learning_run: Job, suffix: str, update: int
) -> None:
    checkpoint = find_checkpoint(learning_run.run_dir + suffix)
    assert checkpoint.update == update
    assert checkpoint.run_dir == Path(learning_run.run_dir)
    assert (checkpoint.directory / "model.safetensors").is_file()


def test_find_checkpoint_best_is_the_one_with_the_highest_held_out_success(
    learning_run: Job, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(learning_run.run_dir, run_dir)
    records = [
        {"kind": "evaluation", "update": update, "success": success, "wall_seconds": 1.0}
        for update, success in ((0, 0.9), (1, 0.5), (2, 0.25))
    ]
    (run_dir / METRICS_FILE).write_text("".join(json.dumps(line) + "\n" for line in records))
    assert find_checkpoint(f"{run_dir}@best").update == 1  # of the start there is no checkpoint


def test_find_checkpoint_that_is_not_there_names_those_that_are(learning_run: Job) -> None:
    with pytest.raises(ConfigError, match=r"has no such checkpoint; it has 1, 2$"):
        find_checkpoint(f"{learning_run.run_dir}@7")


def test_find_checkpoint_best_without_an_evaluation_says_so(
    learning_run: Job, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(learning_run.run_dir, run_dir)
    (run_dir / METRICS_FILE).write_text("")
    with pytest.raises(ConfigError, match=r"has no evaluated checkpoint; it has 1, 2$"):
        find_checkpoint(f"{run_dir}@best")


def test_find_checkpoint_of_what_is_no_run_is_none(small_policy: Path) -> None:
    assert find_checkpoint(str(small_policy)) is None
    assert find_checkpoint("OWNER/NAME@main") is None


def test_pin_checkpoint_replaces_a_run_given_as_the_model(learning_run: Job) -> None:
    overrides = {"model": learning_run.run_dir, "run.dir": learning_run.run_dir}
    directory = find_checkpoint(learning_run.run_dir).directory
    assert pin_checkpoint(overrides) == overrides | {"model": str(directory)}


def test_eval_fixed_settings_exist() -> None:
    assert set(FIXED_SETTINGS) <= set(all_settings())


def test_evaluation_config_of_a_checkpoint_has_the_settings_of_its_run(learning_run: Job) -> None:
    config = evaluation_config(learning_run.run_dir, {"sampling.temperature": "0.5"}, serial=True)
    assert config.env == learning_run.config.env
    assert config.model.name == str(find_checkpoint(learning_run.run_dir).directory)
    assert config.sampling.temperature == 0.5
    assert config.run.max_updates == 0


@pytest.mark.parametrize("name", ["run.max_updates", "model.name"])
def test_evaluation_config_refuses_what_an_evaluation_fixes(name: str) -> None:
    with pytest.raises(ConfigError, match=f"eval: {name} is fixed here"):
        evaluation_config("tiny", {name: "1"}, serial=False)


def test_eval_of_a_run_plays_each_held_out_task_once_and_writes_its_figures(
    learning_run: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "eval"
    arguments = [learning_run.run_dir, "--serial", "--episodes", "3", "--run.dir", str(run_dir)]
    assert main(["eval", *arguments]) == 0
    results = json.loads((run_dir / "eval.json").read_text())
    assert sorted(task["task"] for task in results["tasks"]) == [0, 1, 2]
    assert results["success"]["count"] == results["episodes"] == 3
    assert results["success"]["low"] <= results["success"]["mean"] <= results["success"]["high"]
    assert 0 < results["tokens_per_turn"] <= learning_run.config.sampling.max_tokens
    assert results["settings"]["env.max_turns"] == 4
    printed = capsys.readouterr().out
    assert "95 % interval" in printed and str(run_dir / "eval.json") in printed
    evaluations = select_kind(read_metrics(run_dir / METRICS_FILE), "evaluation")
    assert len(evaluations) == 1, "nothing is played twice"
    assert not (run_dir / "checkpoints").exists(), "a copy of the model is of no use"


def test_eval_of_the_expert_needs_no_engine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "results" / "expert.json"
    assert main(["eval", "expert", "--episodes", "5", "--output", str(output)]) == 0
    results = json.loads(output.read_text())
    assert results["success"]["mean"] == 1.0 and results["episodes"] == 5
    assert results["turns"]["low"] <= results["turns"]["mean"] <= results["turns"]["high"]
    assert "100.0%" in capsys.readouterr().out


def test_eval_of_several_sets_and_samples_plays_each_and_prints_a_table_of_each(
    learning_run: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "eval"
    sets = {
        "eval.sets.heat.tasks": "1",
        "eval.sets.heat.settings.task_types": HEAT,
        "eval.sets.late.tasks": "2",
        "eval.sets.late.first_task": "5",
        "eval.sets.left_out.tasks": "1",
    }
    options = {"samples": "2", "sets": "late,heat", "eval.temperature": "0"}
    arguments = [f"--{name}={value}" for name, value in (sets | options).items()]
    place = ["--run.dir", str(run_dir)]
    assert main(["eval", learning_run.run_dir, "--serial", *arguments, *place]) == 0
    results = json.loads((run_dir / "eval.json").read_text())
    played = sorted((one["set"], one["task"], one["sample"]) for one in results["tasks"])
    assert played == [
        ("heat", 0, 0),
        ("heat", 0, 1),
        ("late", 5, 0),
        ("late", 5, 1),
        ("late", 6, 0),
        ("late", 6, 1),
    ]
    assert {one["task_type"] for one in results["tasks"] if one["set"] == "heat"} == {HEAT}
    assert results["success"] == results["sets"]["late"]["success"]
    assert results["decoding"] == {"temperature": 0.0, "top_k": 0, "top_p": 1.0}
    printed = capsys.readouterr().out
    assert "late" in printed and "heat" in printed and "pass@2" in printed
    (evaluation,) = select_kind(read_metrics(run_dir / METRICS_FILE), "evaluation")
    assert {"eval/late/success", "eval/heat/pass_at/2"} <= set(evaluation)
    greedy = [
        episode for _, episode in read_episodes(run_dir / "episodes") if episode.task_index == 5
    ]
    responses = [[turn.kept.tokens for turn in episode.turns] for episode in greedy]
    assert len(responses) == 2 and responses[0] == responses[1], "greedy: the same both times"


def test_eval_without_a_model_first_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "--env", "webshop", "RUN"]) == 2
    assert "name the model first" in capsys.readouterr().err


def test_build_results_without_any_episode_has_no_means() -> None:
    results = build_results(small_config(), "model", [], dropped={"": 3})
    assert results["success"]["mean"] is None and results["dropped"] == 3


def test_build_results_of_samples_count_each_task_once() -> None:
    """Task 0 is solved in one of two episodes, task 1 in both."""
    outcomes = [(0, 0, True), (0, 1, False), (1, 0, True), (1, 1, True)]
    episodes = [
        EvaluatedEpisode(task, "a", success, 2.0 * success, 3, index=task, sample=sample)
        for task, sample, success in outcomes
    ]
    results = build_results(small_config(eval__samples="2"), "model", episodes, dropped={})
    assert (results["episodes"], results["samples"]) == (4, 2)
    assert (results["success"]["mean"], results["success"]["count"]) == (0.75, 2)
    assert results["pass_at"]["2"]["mean"] == 1.0 and results["reward"]["mean"] == 1.5


def test_build_results_of_sets_have_the_first_ones_figures_and_those_of_each() -> None:
    config = small_config(eval__sets__unseen__tasks="2", eval__sets__seen__tasks="1")
    episodes = [
        EvaluatedEpisode(0, "a", True, 1.0, 2, set="unseen", index=0),
        EvaluatedEpisode(0, "a", False, 0.0, 2, set="seen", index=0),
    ]
    results = build_results(config, "model", episodes, dropped={"unseen": 1})
    assert results["success"] == results["sets"]["unseen"]["success"]
    assert (results["dropped"], results["sets"]["seen"]["dropped"]) == (1, 0)
    assert results["sets"]["seen"]["success"]["mean"] == 0.0


@pytest.mark.parametrize("names", ["unseen,other", " , "])
def test_sets_that_there_are_not_are_refused(names: str) -> None:
    with pytest.raises(ConfigError, match=r"^--sets: "):
        choose_sets(small_config(eval__sets__unseen__tasks="2"), names)


def test_build_results_by_type_and_score_count_those_that_have_them() -> None:
    episodes = [
        EvaluatedEpisode(0, "a", True, 1.0, 2, tokens=10, cut_off=1, scores={"price": 0.5}),
        EvaluatedEpisode(1, "b", False, 0.0, 2, tokens=30, invalid=2, index=1),
    ]
    results = build_results(small_config(), "model", episodes, dropped={})
    assert results["success_by_type"]["a"]["mean"] == 1.0
    assert results["success_by_type"]["b"]["count"] == 1
    assert results["scores"]["price"] == {"mean": 0.5, "low": 0.5, "high": 0.5, "count": 1}
    assert results["tokens_per_turn"] == 10.0
    assert (results["cut_off_share"], results["invalid_share"]) == (0.25, 0.5)


def test_mean_interval_shrinks_with_the_square_root_of_the_count() -> None:
    few = mean_interval([0.0, 1.0] * 8)
    many = mean_interval([0.0, 1.0] * 32)
    assert few[0] == many[0] == 0.5
    assert (few[2] - few[1]) / (many[2] - many[1]) == pytest.approx(2.0, rel=0.03)
    assert few[2] - few[0] == pytest.approx(1.96 * math.sqrt(0.25 * 16 / 15 / 16))


def test_export_loads_in_transformers_and_has_a_card_of_the_runs_figures(
    learning_run: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    directory = tmp_path / "exported"
    assert main(["export", f"{learning_run.run_dir}@1", str(directory)]) == 0
    assert "update 1 of" in capsys.readouterr().out
    model = AutoModelForCausalLM.from_pretrained(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": "look"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    assert model(**inputs).logits.shape[-1] == model.config.vocab_size
    assert not (directory / "training_state").exists()
    card = (directory / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "| 0 | 2 | " in card and "| 2 | 2 | " not in card, "evaluations up to the checkpoint"
    assert "`env.max_turns = 4`" in card
    assert "Your task is to" in card, "the form of a prompt"


def test_model_card_says_how_prompts_are_rendered() -> None:
    """With the message of the system and the arguments that the policy was trained with."""
    model = ModelSection(system_prompt="Be brief.", template_arguments={"enable_thinking": False})
    config = msgspec.structs.replace(small_config(), model=model)
    card = model_card(TrainingRecord(config, 0, [], [], {}, ""), None)
    assert 'messages.insert(0, {"role": "system", "content": \'Be brief.\'})' in card
    assert "arguments = {'enable_thinking': False}" in card


def test_model_card_of_conversations_takes_the_whole_prompt() -> None:
    """No message of the user alone is what the policy has read."""
    record = TrainingRecord(small_config(), 0, [], [], {}, "<|im_start|>system", True)
    card = model_card(record, None)
    assert "it answers in words, or calls tools" in card
    assert "inputs = tokenizer(prompt, add_special_tokens=False" in card


def test_export_cites_an_evaluation(learning_run: Job, tmp_path: Path) -> None:
    evaluation = tmp_path / "eval.json"
    episodes = [EvaluatedEpisode(n, "heat", n < 3, 1.0, 2, index=n) for n in range(4)]
    config = small_config(eval__temperature="0.6", eval__top_k="20")
    evaluation.write_text(json.dumps(build_results(config, "model", episodes, dropped={})))
    arguments = [learning_run.run_dir, str(tmp_path / "model"), "--evaluation", str(evaluation)]
    assert main(["export", *arguments]) == 0
    card = (tmp_path / "model/README.md").read_text()
    assert "| heat | 4 | 75.0% | 30.1% – 95.4% |" in card
    assert "4 held-out tasks of alfworld, with temperature 0.6, top_k 20, top_p 1:" in card


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}),
        ({"eval__temperature": "0"}, {"do_sample": False}),
    ],
)
def test_export_generates_as_the_runs_evaluations_do(
    learning_run: Job, settings: dict[str, str], expected: dict
) -> None:
    """What is written is what transformers takes, and keeps the rest of the model's."""
    from transformers import GenerationConfig

    checkpoint = find_checkpoint(learning_run.run_dir).directory
    written = generation_config(checkpoint, small_config(**settings))
    assert {name: written[name] for name in expected} == expected
    GenerationConfig(**written).validate(strict=True)
    kept = json.loads((checkpoint / "generation_config.json").read_text())
    assert written["eos_token_id"] == kept["eos_token_id"]


def test_export_into_a_directory_with_files_is_refused(
    learning_run: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").touch()
    assert main(["export", learning_run.run_dir, str(tmp_path)]) == 2
    assert "is there already" in capsys.readouterr().err


def test_export_of_a_damaged_checkpoint_is_refused(
    learning_run: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = tmp_path / "run" / "checkpoints" / "000001"
    shutil.copytree(find_checkpoint(f"{learning_run.run_dir}@1").directory, checkpoint)
    (checkpoint / "model.safetensors").write_bytes(b"torn")
    assert main(["export", str(checkpoint), str(tmp_path / "model")]) == 2
    assert "is damaged" in capsys.readouterr().err


def test_export_of_what_is_no_run_is_refused(
    small_policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(small_policy), str(tmp_path / "model")]) == 2
    assert "is no run" in capsys.readouterr().err
