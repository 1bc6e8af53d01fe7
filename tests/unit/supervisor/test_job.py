"""Files that a job leaves in memory, and who removes them."""

import json
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

import supervisor.job
from config import ConfigError
from config.options import values_of
from config.resolve import resolve
from controller.transport import build_welcome
from protocol.lifetime import dying_with_parent
from protocol.security import make_keys
from supervisor.cli.main import main
from supervisor.endpoints import check_hosts, free_port
from supervisor.job import clean_up, environment_errors, job_file, make_weights_dir, prepare_job
from tests.fixtures.runs import job_in, small_config


def test_weights_of_a_killed_supervisor_are_removed_those_of_a_living_one_kept(
    tmp_path: Path,
):
    """Weights of a killed supervisor are removed and those of a living one are not."""
    code = (
        "from pathlib import Path; from supervisor.job import make_weights_dir; "
        f"print(make_weights_dir(Path({str(tmp_path)!r})))"
    )
    ended = Path(
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
    )
    assert ended.is_dir()
    first = Path(make_weights_dir(tmp_path))
    second = Path(make_weights_dir(tmp_path))
    assert not ended.exists() and first.is_dir() and second.is_dir() and first != second


def test_a_directory_belongs_to_one_run_at_a_time(tmp_path: Path, small_policy: Path):
    config = resolve(
        overrides={
            "model": str(small_policy),
            "run.dir": str(tmp_path / "run"),
            "run.weights_dir": str(tmp_path / "weights"),
        }
    )
    job = prepare_job(config, resume=False, model=small_policy)
    log = tmp_path / "run" / "job.json"
    before = log.read_bytes()
    with pytest.raises(ConfigError, match=r"run\.dir: the run in .* is still under way"):
        prepare_job(config, resume=True, model=small_policy)
    assert log.read_bytes() == before
    clean_up(job)
    resumed = prepare_job(config, resume=True, model=small_policy)
    assert resumed.run_id == job.run_id  # engines know it again
    clean_up(resumed)
    assert list((tmp_path / "weights").iterdir()) == []


def test_a_copy_of_a_run_is_another_one_to_its_engines(tmp_path: Path, small_policy: Path):
    settings = {"model": str(small_policy), "run.weights_dir": str(tmp_path / "weights")}
    job = prepare_job(
        resolve(overrides=settings | {"run.dir": str(tmp_path / "run")}),
        resume=False,
        model=small_policy,
    )
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    copied = prepare_job(
        resolve(overrides=settings | {"run.dir": str(tmp_path / "copy")}),
        resume=True,
        model=small_policy,
    )
    assert copied.run_id != job.run_id
    for begun in (job, copied):
        clean_up(begun)


def test_runs_that_begin_in_the_same_second_have_directories_of_their_own(
    tmp_path: Path, small_policy: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(supervisor.job, "default_run_dir", lambda: tmp_path / "20260101-120000")
    config = resolve(overrides={"model": str(small_policy)})
    jobs = [prepare_job(config, resume=False, model=small_policy) for _ in range(3)]
    assert [Path(job.run_dir).name for job in jobs] == [
        "20260101-120000",
        "20260101-120000.2",
        "20260101-120000.3",
    ]
    for job in jobs:
        clean_up(job)


def test_a_place_where_nothing_can_be_written_is_refused(small_policy: Path):
    with pytest.raises(ConfigError, match=r"run\.dir: /proc/run cannot be written to"):
        prepare_job(
            resolve(overrides={"model": str(small_policy), "run.dir": "/proc/run"}),
            resume=False,
            model=small_policy,
        )


def test_a_place_where_no_weights_can_be_put_is_refused_and_leaves_no_run(
    tmp_path: Path, small_policy: Path
):
    overrides = {
        "model": str(small_policy),
        "run.dir": str(tmp_path / "run"),
        "run.weights_dir": "/proc/weights",
    }
    with pytest.raises(ConfigError, match=r"run\.weights_dir: /proc/weights cannot be made"):
        prepare_job(resolve(overrides=overrides), resume=False, model=small_policy)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("host", "told"), [("0.0.0.0", ""), ("127.0.0.2", "127.0.0.2"), ("", "")])
def test_actors_are_told_no_address_of_the_learner_that_is_none(
    tmp_path: Path, small_policy: Path, host: str, told: str
):
    config = small_config(model__name=str(small_policy))
    config = msgspec.structs.replace(
        config, learner=msgspec.structs.replace(config.learner, host=host)
    )
    assert build_welcome(job_in(tmp_path / "run", config)).learner_host == told


@pytest.mark.parametrize(
    ("algorithm", "anchor_texts"),
    [
        ({"learner__algorithm": "grpo"}, False),
        ({"learner__algorithm": "gigpo"}, False),
        (
            {
                "learner__algorithm": "gigpo",
                "learner__algorithm__anchor_similarity": "0.9",
            },
            True,
        ),
    ],
)
def test_actors_send_anchors_as_texts_where_the_algorithm_compares_texts(
    tmp_path: Path, small_policy: Path, algorithm: dict[str, str], anchor_texts: bool
):
    config = small_config(model__name=str(small_policy), **algorithm)
    assert build_welcome(job_in(tmp_path / "run", config)).anchor_texts == anchor_texts


def test_what_is_not_ours_is_left_alone(tmp_path: Path):
    (tmp_path / "foray-notes").mkdir()
    make_weights_dir(tmp_path)
    assert (tmp_path / "foray-notes").is_dir()


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


def without_tag(tokenizer: dict) -> None:
    tokenizer["added_tokens"] = [
        token for token in tokenizer["added_tokens"] if token["content"] != "<think>"
    ]


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
            without_tag,
            {},
            r"model\.name: the tokenizer has no single token for <think>",
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
            {"engine.max_model_len": "70"},
            r"engine\.max_model_len: 70 tokens do not hold",
        ),
    ],
    ids=["vocabulary", "tag", "special", "context"],
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


def test_without_control_a_model_needs_no_token_for_its_tags(tmp_path: Path, small_policy: Path):
    model = spoilt(small_policy, tmp_path / "model", "tokenizer.json", without_tag)
    settings = {"model": str(model), "run.dir": str(tmp_path / "run"), "control": "off"}
    job = prepare_job(resolve(overrides=settings), resume=False, model=model)
    assert job.model_dir == str(model)


def test_free_ports_differ_and_are_none_that_outgoing_connections_get():
    """Free ports differ, and none is one that outgoing connections get.

    So one is still free when, seconds later, the process that it was chosen for listens on it.
    """
    ports = [free_port() for _ in range(200)]
    assert len(set(ports)) == 200 and all(10_000 <= port < 32_768 for port in ports)


def test_a_port_that_another_process_has_chosen_is_passed_over():
    """Its process may not listen on it yet."""
    chosen = free_port() + 1  # the one that would be tried next
    reserve = (
        f"import sys, supervisor.endpoints as e; print(e.reserve_port({chosen}), flush=True); "
        "sys.stdin.read()"
    )
    command = [sys.executable, "-c", reserve]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, preexec_fn=dying_with_parent()
    ) as other:
        assert other.stdout.readline() == b"True\n"
        assert free_port() != chosen
        other.stdin.close()


def test_a_port_that_is_taken_is_passed_over():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", free_port() + 1))  # the one that would be tried next
        assert free_port() != taken.getsockname()[1]


@pytest.mark.parametrize("name", ["controller.host", "learner.host", "dashboard.host"])
@pytest.mark.parametrize("host", ["192.0.2.1", "::1", "a" * 64])
def test_a_host_that_is_not_this_machine_is_refused_by_the_name_of_its_setting(
    tmp_path: Path, name: str, host: str
):
    settings = {
        name: host,
        "dashboard.token": "sesame",
        "controller.port": str(free_port()),
        "run.dir": str(tmp_path / "run"),
    }
    with pytest.raises(
        ConfigError,
        match=(
            rf"^{re.escape(name)}: '{host}' is no IPv4 address of this machine; "
            r"give one that is, or 0\.0\.0\.0"
        ),
    ):
        prepare_job(resolve(overrides=settings), resume=False, model=None)
    assert not (tmp_path / "run").exists()


def test_another_machine_at_an_ipv6_address_is_refused(capsys: pytest.CaptureFixture):
    for refuse in (
        lambda: check_hosts(resolve(overrides={"cluster.shard_hosts": "10.0.0.2,fd00::17"})),
        lambda: check_hosts(
            resolve(overrides={"cluster.learner_launch": "srun", "learner.host": "fd00::17"})
        ),
    ):
        with pytest.raises(
            ConfigError, match=r"fd00::17 is an IPv6 address, and a run uses IPv4; give"
        ):
            refuse()
    assert main(["actor", "--connect", "tcp://[::1]:5555"]) == 2
    assert "--connect: ::1 is an IPv6 address" in capsys.readouterr().err


def test_listening_to_other_machines_without_keys_is_refused_naming_the_command(tmp_path: Path):
    settings = {"controller.host": "0.0.0.0", "run.dir": str(tmp_path / "run")}
    with pytest.raises(ConfigError, match=r"controller\.host.*run\.py keys DIR.*security\.keys"):
        prepare_job(resolve(overrides=settings), resume=False, model=None)
    assert not (tmp_path / "run").exists()


def test_the_keys_of_a_machine_that_joins_are_not_those_of_a_run(tmp_path: Path):
    make_keys(tmp_path / "keys", "host")
    with pytest.raises(ConfigError, match=r"security\.keys: .*the directory above it"):
        prepare_job(
            resolve(
                overrides={
                    "security.keys": str(tmp_path / "keys" / "host"),
                    "run.dir": str(tmp_path / "run"),
                }
            ),
            False,
            None,
        )


def test_nobody_else_may_read_a_run(tmp_path: Path):
    job = prepare_job(
        resolve(overrides={"run.dir": str(tmp_path / "runs" / "run")}), resume=False, model=None
    )
    shutil.rmtree(job.weights_dir)
    assert (
        Path(job.run_dir).stat().st_mode & 0o777 == 0o700
        and job_file(job).stat().st_mode & 0o777 == 0o600
    )


def test_a_secret_is_shown_as_set_and_no_more():
    assert values_of(resolve(overrides={"dashboard.token": "sesame"}))["dashboard.token"] == "(set)"
    assert values_of(resolve())["dashboard.token"] == ""


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"run.weights_dir": ""}, r"cluster\.learner_launch: .* run\.weights_dir"),
        ({"learner.host": ""}, r"cluster\.learner_launch: .* learner\.host"),
        ({"controller.host": "0.0.0.0"}, r"controller\.host: .* not 0\.0\.0\.0"),
        ({"controller.host": "127.0.0.1"}, r"controller\.host: .* not 127\.0\.0\.1"),
        ({"learner.host": "0.0.0.0"}, r"learner\.host: .* not 0\.0\.0\.0"),
    ],
)
def test_a_learner_elsewhere_needs_addresses_and_a_disk_of_both_machines(
    tmp_path: Path, changed: dict[str, str], message: str
):
    settings = {
        "cluster.learner_launch": "srun,-w,node7",
        "learner.host": "10.9.8.7",
        "controller.host": "10.9.8.6",
    }
    settings |= {"run.weights_dir": str(tmp_path / "weights"), "run.dir": str(tmp_path / "run")}
    with pytest.raises(ConfigError, match=message):
        prepare_job(resolve(overrides=settings | changed), resume=False, model=None)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "error", [SystemExit(2), KeyError("x"), ImportError("no module named game")]
)
def test_what_code_of_an_environment_raises_is_a_refusal_that_says_where(error: BaseException):
    said = rf"^env\.name: alfworld fails: {type(error).__name__}: .*test_job\.py:\d+ in test_"
    with pytest.raises(ConfigError, match=said), environment_errors(small_config()):
        raise error
