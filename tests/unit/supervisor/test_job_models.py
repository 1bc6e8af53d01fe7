"""Environments and models that a run cannot use are refused before anything is written."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from config import ConfigError
from config.resolve import resolve
from supervisor.cli.train import check_settings, describe_warm_start
from supervisor.job import clean_up, environment_errors, prepare_job
from supervisor.models import check_files
from tests.fixtures.runs import small_config
from tests.fixtures.templates import PLAIN
from tests.fixtures.tool_environment import tool_code


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"env": "chess"}, "unknown environment 'chess'"),
        ({"env": "search", "env.settings.corpus": "/nowhere"}, "env.settings.corpus: /nowhere"),
    ],
)
def test_an_environment_that_cannot_be_made_is_refused_before_anything_is_written(
    tmp_path: Path, settings: dict[str, str], message: str
):
    with pytest.raises(ConfigError, match=message):
        prepare_job(
            resolve(overrides=settings | {"run.dir": str(tmp_path / "run")}),
            resume=False,
            model=None,
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_tiny_policy_cannot_start_on_questions_that_no_expert_knows(tmp_path: Path):
    questions = tmp_path / "mine.jsonl"
    questions.write_text(
        "".join(
            f'{{"question": "Who is number {i}?", "answers": ["Nobody"]}}\n' for i in range(100)
        )
    )
    settings = {
        "env": "search",
        "env.settings.questions": str(questions),
        "run.dir": str(tmp_path / "run"),
    }
    with pytest.raises(
        ConfigError, match=r"env\.settings\.questions; the tiny policy.*model\.name"
    ):
        prepare_job(resolve(overrides=settings), resume=False, model=None)


def test_a_game_that_makes_no_sense_is_refused_before_anything_is_written(tmp_path: Path):
    for split in ("train", "valid_unseen"):
        trial = tmp_path / "games" / split / "pick_and_place_simple-1" / "trial"
        trial.mkdir(parents=True)
        (trial / "game.tw-pddl").write_text('{"pddl_problem": "(define)", "solvable": true}')
    settings = {"env.settings.data": str(tmp_path / "games"), "run.dir": str(tmp_path / "run")}
    with pytest.raises(
        ConfigError,
        match=(
            r"env\.settings\.data: "
            r".*train/pick_and_place_simple-1/trial/game\.tw-pddl: pddl_problem"
        ),
    ):
        prepare_job(resolve(overrides=settings), resume=False, model=None)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("environment", ["textarena", "gymnasium"])
def test_the_tiny_policy_cannot_start_where_there_is_no_expert(tmp_path: Path, environment: str):
    with pytest.raises(
        ConfigError, match=rf"{environment} has no expert; the tiny policy.*model\.name"
    ):
        prepare_job(
            resolve(overrides={"env": environment, "run.dir": str(tmp_path / "run")}),
            resume=False,
            model=None,
        )


def spoilt(policy: Path, directory: Path, file: str, change: Callable[[dict], object]) -> Path:
    """A copy of the policy with one of its JSON files changed."""
    shutil.copytree(policy, directory)
    content = json.loads((directory / file).read_text())
    change(content)
    (directory / file).write_text(json.dumps(content))
    return directory


def without_tags(tokenizer: dict) -> None:
    tokenizer["added_tokens"] = [
        token for token in tokenizer["added_tokens"] if "think" not in token["content"]
    ]


def without_brackets(tokenizer: dict) -> None:
    without_tags(tokenizer)
    tokenizer["normalizer"] = {"type": "Replace", "pattern": {"String": "<"}, "content": ""}


def special_tag(tokenizer: dict) -> None:
    for token in tokenizer["added_tokens"]:
        token["special"] = True


@pytest.mark.parametrize(
    ("file", "change", "settings", "message"),
    [
        (
            "config.json",
            lambda config: config.update(vocab_size=9),
            {},
            r"model\.name: .* tokens, but the model chooses from 9",
        ),
        (
            "tokenizer.json",
            without_brackets,
            {},
            r"model\.name: the tokenizer cannot spell <think>, </think>, which control\.mode",
        ),
        (
            "tokenizer.json",
            special_tag,
            {},
            r"model\.name: .*does not give back an answer as it was written",
        ),
        (
            "config.json",
            lambda config: None,
            {"engine.max_model_len": "70", "sampling.max_tokens": "64"},
            r"engine\.max_model_len: 70 tokens do not hold",
        ),
        (
            "tokenizer_config.json",
            lambda settings: settings.update(chat_template="{{ raise_exception('no') }}"),
            {},
            r"model\.name: the chat template refuses a conversation: no",
        ),
        (
            "tokenizer_config.json",
            lambda settings: settings.update(chat_template="{% for"),
            {},
            r"model\.name: the chat template is none: ",
        ),
        (
            "config.json",
            lambda config: None,
            {"model.template_arguments.enable_thinking": "false"},
            r"model\.template_arguments\.enable_thinking: .* no such argument",
        ),
    ],
    ids=["vocabulary", "tag", "special", "context", "raises", "syntax", "argument"],
)
def test_model_that_does_not_fit_the_environment_is_refused_before_any_write(
    tmp_path: Path,
    small_policy: Path,
    file: str,
    change: Callable[[dict], object],
    settings: dict[str, str],
    message: str,
):
    """A model that does not fit the environment is refused before anything is written."""
    model = spoilt(small_policy, tmp_path / "model", file, change)
    with pytest.raises(ConfigError, match=message):
        prepare_job(
            resolve(overrides={"model": str(model), "run.dir": str(tmp_path / "run")} | settings),
            resume=False,
            model=model,
        )
    assert not (tmp_path / "run").exists()


def cut_weights(directory: Path) -> None:
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])


def point_to_weights(directory: Path) -> None:
    (directory / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")


def forget_weights(directory: Path) -> None:
    (directory / "model.safetensors").unlink()


def forget_shard(directory: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def garble_index(directory: Path) -> None:
    (directory / "model.safetensors.index.json").write_text('{"weight_map": ["a"]}')


def quantize(directory: Path) -> None:
    config = json.loads((directory / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq"}
    (directory / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (cut_weights, r"model\.safetensors cannot be read: "),
        (point_to_weights, r"a pointer of Git LFS; `git lfs pull` fetches the file"),
        (forget_weights, r"lacks weights: model\.safetensors; fetch all files"),
        (forget_shard, r"lacks weights: model-00002\.safetensors; "),
        (garble_index, r"index\.json has no table weight_map"),
        (quantize, r"is quantized, which cannot be trained: .*gptq"),
    ],
)
def test_model_whose_weights_cannot_be_trained_is_refused(
    tmp_path: Path, small_policy: Path, spoil: Callable[[Path], None], message: str
) -> None:
    shutil.copytree(small_policy, tmp_path / "model")
    check_files(tmp_path / "model")
    spoil(tmp_path / "model")
    with pytest.raises(ConfigError, match=message):
        check_files(tmp_path / "model")


def test_a_model_without_a_chat_template_is_refused_before_anything_is_written(
    tmp_path: Path, small_policy: Path
):
    model = spoilt(
        small_policy,
        tmp_path / "model",
        "tokenizer_config.json",
        lambda settings: settings.pop("chat_template", None),
    )
    (model / "chat_template.jinja").unlink(missing_ok=True)
    with pytest.raises(ConfigError, match="has no chat template"):
        prepare_job(
            resolve(overrides={"model": str(model), "run.dir": str(tmp_path / "run")}),
            resume=False,
            model=model,
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("template", "code", "message"),
    [
        (
            "{% if messages | length > 2 %}{{ raise_exception('two at most') }}{% endif %}",
            ("", ""),
            r"model\.name: the chat template refuses a conversation: two at most",
        ),
        ("", ('Message("user", self.task)', '{"role": "user"}'), "where a Message belongs"),
        ("", ('"name": "price"', '"name": "the price"'), "its name 'the price' is not of"),
    ],
    ids=["template", "message", "tool"],
)
def test_conversation_that_cannot_be_is_refused_before_any_write(
    tmp_path: Path, small_policy: Path, template: str, code: tuple[str, str], message: str
):
    model = spoilt(
        small_policy,
        tmp_path / "model",
        "tokenizer_config.json",
        lambda settings: settings.update(chat_template=template + PLAIN),
    )
    (model / "chat_template.jinja").unlink(missing_ok=True)
    (tmp_path / "prices.py").write_text(tool_code().replace(*code))
    settings = {
        "env": str(tmp_path / "prices.py"),
        "model": str(model),
        "run.dir": str(tmp_path / "run"),
    }
    with pytest.raises(ConfigError, match=message):
        prepare_job(resolve(overrides=settings), resume=False, model=model)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        ("", {}, "given has no expert; the tiny policy learns from an expert"),
        ("small", {"warm_start.episodes": "5"}, r"no expert, and warm_start\.episodes asks for 5"),
        ("small", {"env.history": "2"}, r"env\.history: "),
    ],
    ids=["tiny", "demonstrations", "history"],
)
def test_harness_that_nobody_can_demonstrate_is_refused(
    tmp_path: Path, small_policy: Path, model: str, settings: dict[str, str], message: str
):
    overrides = {"env": "tests.fixtures.harnesses:GivenHarness", "run.dir": str(tmp_path / "run")}
    directory = small_policy if model else None
    if directory is not None:
        overrides["model"] = str(directory)
    with pytest.raises(ConfigError, match=message):
        prepare_job(resolve(overrides=overrides | settings), resume=False, model=directory)


def test_demonstrations_without_an_expert_are_refused(tmp_path: Path, small_policy: Path):
    settings = {
        "model": str(small_policy),
        "env": "gymnasium",
        "warm_start.episodes": "5",
        "run.dir": str(tmp_path / "run"),
    }
    with pytest.raises(
        ConfigError,
        match=(
            r"gymnasium has no expert, and warm_start\.episodes asks for 5 of its episodes; "
            r"set it to 0"
        ),
    ):
        prepare_job(resolve(overrides=settings), resume=False, model=small_policy)


def write_conversations(directory: Path, *contents: str) -> dict[str, str]:
    """Write what an assistant says to hello, a conversation each; returns settings."""
    file = directory / "chats.jsonl"
    lines = [
        json.dumps(
            {
                "messages": [
                    {"role": "user", "content": "hello"},
                    {"role": "assistant", "content": content},
                ]
            }
        )
        for content in contents
    ]
    file.write_text("\n".join(lines))
    environment = directory / "prices.py"
    environment.write_text(tool_code())
    return {"env": str(environment), "warm_start.episodes": "0", "warm_start.data": str(file)}


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ("", r"messages\[1\]: the assistant says nothing"),
        ("hi " * 300, r"its [\d,]+ tokens are more than engine\.max_model_len \(300\)"),
    ],
)
def test_conversation_that_does_not_fit_is_refused_before_anything_is_written(
    tmp_path: Path, small_policy: Path, second: str, message: str
) -> None:
    settings = write_conversations(tmp_path, "hi", second) | {
        "model": str(small_policy),
        "engine.max_model_len": "300",
        "sampling.max_tokens": "32",
        "run.dir": str(tmp_path / "run"),
    }
    with pytest.raises(ConfigError, match=rf"^warm_start\.data: .*chats\.jsonl, line 2: {message}"):
        prepare_job(resolve(overrides=settings), resume=False, model=small_policy)
    assert not (tmp_path / "run").exists()


def test_tiny_policy_needs_no_expert_where_it_learns_from_conversations(tmp_path: Path) -> None:
    config = resolve(overrides=write_conversations(tmp_path, "hi", "hello"))
    check_settings(config, serial=True)
    words = describe_warm_start(config)
    assert words == f"warm start: the conversations of {tmp_path / 'chats.jsonl'} (2)"


def test_what_a_run_learns_from_is_said(tmp_path: Path) -> None:
    data = write_conversations(tmp_path, "hi")
    both = describe_warm_start(resolve(overrides=data | {"warm_start.episodes": "1200"}))
    assert "1,200 episodes of the expert, if it wins them, and the conversations of" in both
    assert describe_warm_start(resolve(overrides={"warm_start.episodes": "0"})).endswith("none")


def test_a_model_whose_turns_end_with_no_token_is_refused(tmp_path: Path, small_policy: Path):
    model = spoilt(
        small_policy,
        tmp_path / "model",
        "tokenizer_config.json",
        lambda settings: settings.update(eos_token="<|nothing|>"),
    )
    with pytest.raises(ConfigError, match=r"model\.name: .* has no token <\|nothing\|>"):
        prepare_job(
            resolve(overrides={"model": str(model), "run.dir": str(tmp_path / "run")}),
            resume=False,
            model=model,
        )


@pytest.mark.parametrize("mode", ["off", "t2po-turn", "t2po"])
def test_a_model_needs_no_single_tokens_for_its_tags(tmp_path: Path, small_policy: Path, mode: str):
    model = spoilt(small_policy, tmp_path / "model", "tokenizer.json", without_tags)
    settings = {"model": str(model), "run.dir": str(tmp_path / "run"), "control": mode}
    job = prepare_job(resolve(overrides=settings), resume=False, model=model)
    assert job.model_dir == str(model)
    clean_up(job)


@pytest.mark.parametrize(
    "error", [SystemExit(2), KeyError("x"), ImportError("no module named game")]
)
def test_what_code_of_an_environment_raises_is_a_refusal_that_says_where(error: BaseException):
    said = (
        rf"^env\.name: alfworld fails: {type(error).__name__}: .*test_job_models\.py:\d+ in test_"
    )
    with pytest.raises(ConfigError, match=said), environment_errors(small_config()):
        raise error
