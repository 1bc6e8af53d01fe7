"""Make a job of a configuration.

What can be checked before anything starts is checked; then the run directory is laid out.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import logging
import os
import random
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import msgspec
from tokenizers import Tokenizer

from config import Config, ConfigError, Devices, Endpoints, Job
from config.evaluation import ONLY_SET
from config.resolve import to_toml
from config.sets import EVALUATION_SETS
from controller.think_tokens import load_think_tokens
from engine.constants import ENGINE_KEY_VARIABLE
from envs.base import Environment, EnvironmentFailure, Episode
from envs.conversation import (
    Conversation,
    Message,
    ToolCall,
    is_conversation,
    number_calls,
    to_chat_messages,
    tools_of,
)
from envs.conversation_checks import check_opening, check_parts
from envs.harness import is_harness
from envs.play import close_episode, make_expert, start_episode
from envs.registry import make_environment
from envs.user_errors import describe_error, to_printable
from protocol.conversation import Transcript, build_codec
from protocol.files import atomic_write
from protocol.messages import SCHEMA_VERSION
from protocol.prompting import Prompter, load_prompter, read_vocabulary
from protocol.security import KeysError, is_loopback, load_keys
from supervisor.endpoints import check_launch, check_shards, choose_endpoints
from supervisor.machine_checks import check_machine, choose_weights_parent
from supervisor.models import check_files
from supervisor.resume import set_damaged_checkpoints_aside
from telemetry.sinks.trackers import check_tracker
from telemetry.work_clock import track

log = logging.getLogger(__name__)

JOB_FILE = "job.json"

MAX_REASON_CHARACTERS = 2000
"""How much of an environment's error message is shown."""

WEIGHTS_PREFIX = "foray-weights-"

NO_LOCK_ERRORS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)
"""Errors of file systems without flock: Lustre without -o flock, some FUSE and 9p mounts."""

LOCK_FILE = ".lock"
"""Name of a file that is locked as long as a process uses the directory.

It is a file, since NFS tells other machines of locks on these alone.
"""

_locks: dict[str, int] = {}
"""Directories of jobs, each with the descriptor of its lock."""


def default_run_dir() -> Path:
    return Path("runs") / time.strftime("%Y%m%d-%H%M%S")


def prepare_job(
    config: Config, resume: bool, model: Path | None, devices: Devices | None = None
) -> Job:
    """Make a job, and its run directory.

    `model` is the policy's directory, unless that is made on the spot; `devices` are the GPUs that
    processes are on, if any. Raises ConfigError when the job cannot be run as configured.
    """
    if config.run.dir and not resume:
        check_run_dir(Path(config.run.dir))
    environment = check_job(config)
    check_model(config, environment, model)
    if not resume:
        check_conversations(config, environment, model)
    endpoints = choose_endpoints(config)
    check_keys(config, endpoints)
    needed_bytes = check_machine(config, model, Path(config.run.dir or "runs"), resume)
    weights_parent = choose_weights_parent(
        config.run.weights_dir, needed_bytes, Path(config.run.dir or default_run_dir())
    )
    run_dir = _claim_run_dir(config.run.dir)
    if resume:
        set_damaged_checkpoints_aside(run_dir)
    (run_dir / "logs").mkdir(exist_ok=True)
    job = Job(
        config=config,
        endpoints=endpoints,
        run_dir=str(run_dir),
        model_dir=str(model or run_dir / "policy"),
        weights_dir=make_weights_dir(weights_parent),
        engine_key=_engine_key(config),
        permit_key=secrets.token_urlsafe(32),
        run_id=_recorded_run_id(run_dir) or secrets.token_hex(8),
        devices=devices or devices_without_gpus(config),
        resume=resume,
        schema=SCHEMA_VERSION,
    )
    if not resume:
        write_settings(job)
    save_job(job)
    return job


def devices_without_gpus(config: Config) -> Devices:
    """Say what processes are told of devices where they compute on CPUs."""
    return Devices(sleeps=config.engine.sleep == "always")


def check_job(config: Config) -> Environment:
    """Raise ConfigError for a job that cannot be run as configured, whatever the model.

    Returns the environment. Nothing is written.
    """
    check_tracker(config.run.tracker)
    environment = build_environment(config)
    check_tasks(config, environment)
    check_sets(config, environment)
    check_launch(config)
    check_shards(config)
    return environment


def _engine_key(config: Config) -> str:
    """The key of the engines: the one given, or a new one for engines that the run starts."""
    given = os.environ.get(ENGINE_KEY_VARIABLE, "")
    if given or config.engine.urls:
        return given
    return secrets.token_urlsafe(32)


def write_settings(job: Job) -> None:
    """Write the settings that a run is resumed with.

    A resumed run does so only once it is under way. Settings that it cannot begin with would keep
    it from ever beginning again.
    """
    atomic_write(Path(job.run_dir) / "config.toml", to_toml(job.config), "run.dir")


def _claim_run_dir(name: str) -> Path:
    """Make the run's directory, if need be, and lock it until this process ends, or `clean_up`.

    Without a name it is a new one. Raises ConfigError when another run has it.
    """
    run_dir = Path(name or default_run_dir())
    try:
        if name:
            run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        else:
            run_dir = _make_new_directory(run_dir)
        _keep_lock(run_dir, run_dir)
    except BlockingIOError:
        raise ConfigError(
            f"run.dir: the run in {run_dir} is still under way; wait until it has ended, or give "
            "another directory"
        ) from None
    except OSError as error:
        raise ConfigError(f"run.dir: {run_dir} cannot be written to: {error.strerror}") from None
    return run_dir


def _make_new_directory(directory: Path) -> Path:
    """Make a directory of that name; with a number, if another run began in the same second."""
    number = 2
    while True:
        try:
            directory.mkdir(mode=0o700, parents=True)
        except FileExistsError:
            directory = directory.with_name(f"{directory.name.partition('.')[0]}.{number}")
            number += 1
        else:
            return directory


def job_file(job: Job) -> Path:
    return Path(job.run_dir) / JOB_FILE


def save_job(job: Job) -> None:
    """Write the job to its run directory, for its processes alone: it has keys."""
    atomic_write(
        job_file(job), msgspec.json.format(msgspec.json.encode(job)), "run.dir", mode=0o600
    )


def _recorded_run_id(run_dir: Path) -> str:
    """The id of the run in `run_dir`, which is resumed; "" for none, or a copy of another run."""
    with contextlib.suppress(ConfigError, OSError):
        recorded = Job.load(run_dir / JOB_FILE)
        if Path(recorded.run_dir).resolve() == run_dir.resolve():
            return recorded.run_id
    return ""


def make_weights_dir(parent: Path) -> str:
    """Make a directory for published weights, locked until this process ends.

    Unlocked ones, of supervisors that were killed, are removed. It is a lock and not a process
    number: containers may share memory (`--ipc=host`) without seeing each other's processes.
    """
    _remove_abandoned(parent)
    directory = Path(tempfile.mkdtemp(prefix=f".{WEIGHTS_PREFIX}", dir=parent))
    final = parent / directory.name[1:]
    _keep_lock(directory, final)
    directory.rename(final)  # only now may others try to remove it
    return str(final)


def _remove_abandoned(parent: Path) -> None:
    """Remove the directories of weights in `parent` that no process has locked."""
    for abandoned in parent.glob(f"{WEIGHTS_PREFIX}*"):
        with contextlib.suppress(OSError):  # in use, not ours, or gone
            descriptor = lock_directory(abandoned)
            try:
                shutil.rmtree(abandoned)
            finally:
                os.close(descriptor)


def _keep_lock(directory: Path, final: Path) -> None:
    """Lock a directory, which will be called `final`, until `clean_up`.

    A disk without locks does not fail the run: they only tell of a second run in the same place.
    """
    try:
        _locks[str(final)] = lock_directory(directory)
    except OSError as error:
        if error.errno not in NO_LOCK_ERRORS:
            raise
        log.warning(
            "the disk of %s has no locks (%s): a second run in it would not be refused",
            final,
            error.strerror,
        )


def lock_directory(directory: Path) -> int:
    """Lock a directory; returns a descriptor, which keeps the lock until it is closed.

    Raises BlockingIOError if somebody else has the lock.
    """
    descriptor = os.open(directory / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def clean_up(job: Job) -> None:
    """Remove what only the running processes needed; the run's directory is anybody's again."""
    shutil.rmtree(job.weights_dir, ignore_errors=True)
    for directory in (job.weights_dir, job.run_dir):
        if directory in _locks:
            os.close(_locks.pop(directory))


def check_run_dir(run_dir: Path) -> None:
    """Raise ConfigError for a place where no new run can be."""
    if run_dir.is_file():
        raise ConfigError(f"run.dir: {run_dir} is a file; give a directory")
    if run_dir.is_dir() and any(run_dir.iterdir()):
        raise ConfigError(
            f"run.dir: {run_dir} is not empty; give another directory, or go on with that run by "
            f"--resume {run_dir}"
        )


def build_environment(config: Config, evaluation_set: str = ONLY_SET) -> Environment:
    """Build the environment of a run, or that of an evaluation set of it, which reads its files.

    Raises ConfigError for an unknown one, or settings that it refuses.
    """
    try:
        with environment_errors(config):
            settings = config.environment_settings(evaluation_set)
            return make_environment(config.env.name, **settings)
    except ConfigError as error:
        if evaluation_set == ONLY_SET:
            raise
        raise ConfigError(f"{EVALUATION_SETS}.{evaluation_set}.settings: {error}") from None


@contextlib.contextmanager
def environment_errors(config: Config) -> Iterator[None]:
    """Turn what code of the environment raises inside into a ConfigError.

    ValueError and EnvironmentFailure say what to change; of others the place is said.
    """
    try:
        yield
    except ValueError as error:
        raise ConfigError(to_printable(str(error), MAX_REASON_CHARACTERS)) from None
    except EnvironmentFailure as error:
        reason = to_printable(str(error), MAX_REASON_CHARACTERS)
        raise ConfigError(f"{config.env.name}: {reason}") from None
    except (Exception, SystemExit, GeneratorExit, asyncio.CancelledError) as error:
        raise ConfigError(f"env.name: {config.env.name} fails: {describe_error(error)}") from None


@contextlib.contextmanager
def first_task(environment: Environment) -> Iterator[Episode]:
    """Start the first task to look at it, and close it afterwards.

    It is a training task, or a held-out one where there are none.
    """
    split = "held_out"
    if environment.size("train"):
        split = "train"
    episode = start_episode(environment, split, 0, 0)
    try:
        yield episode
    finally:
        close_episode(episode)


def check_tasks(config: Config, environment: Environment) -> None:
    """Raise ConfigError where there is nothing to train on, and training is asked for."""
    if environment.size("train"):
        return
    for setting, count in (
        ("run.max_updates", config.run.max_updates),
        ("warm_start.episodes", config.warm_start.episodes),
    ):
        if count:
            raise ConfigError(
                f"{setting}: {config.env.name} has no tasks to train on; set it to 0 to evaluate "
                "only"
            )


def check_sets(config: Config, environment: Environment) -> None:
    """Raise ConfigError for an evaluation set that asks for more tasks than there are.

    `environment` is that of training, and of the sets that have no other settings.
    """
    for planned in config.evaluation_plan().sets:
        if planned.name == ONLY_SET:
            continue  # its tasks are played again where there are too few
        own = environment
        if config.eval.sets[planned.name].settings:
            own = build_environment(config, planned.name)
        size = own.size(planned.split)
        if planned.first_task + planned.tasks > size:
            raise ConfigError(
                f"{EVALUATION_SETS}.{planned.name}.tasks: {planned.tasks} tasks from number "
                f"{planned.first_task} on, and the split {planned.split} has {size}; give fewer"
            )


def check_model(config: Config, environment: Environment, directory: Path | None) -> None:
    """Raise ConfigError for a directory without a model, or demonstrations that cannot be had.

    A demonstration needs an expert, and a first task that can be started.
    """
    settings = config.warm_start
    needs_expert = bool(settings.episodes) or (directory is None and not settings.data)
    if is_harness(environment):
        _check_harness(config, environment, directory, needs_expert)
    elif directory is None or settings.episodes:
        with environment_errors(config), first_task(environment) as episode:
            if needs_expert:
                _check_expert(config, environment, episode, directory)
            if is_conversation(environment):
                check_parts(episode)
                check_opening(cast(Conversation, episode).messages)
    if directory is None:
        return
    missing = [
        name for name in ("config.json", "tokenizer.json") if not (directory / name).is_file()
    ]
    if missing:
        raise ConfigError(
            f"model.name: {directory} is no Hugging Face model directory (it lacks "
            f"{' and '.join(missing)})"
        )
    check_files(directory)
    with environment_errors(config):
        _check_fits(config, directory, environment)


def check_conversations(config: Config, environment: Environment, directory: Path | None) -> None:
    """Raise ConfigError for conversations to learn from that are none, or do not fit.

    `directory` is the model's; without it, they are not measured against its context.
    """
    if not config.warm_start.data:
        return
    from learner.warm_start.conversation_file import read_conversations

    conversations = read_conversations(config, environment)
    if directory is None:
        return
    from learner.warm_start.demonstrations import TurnTokenizer, tokenize_conversation

    turn_tokenizer = TurnTokenizer(load_prompter(directory, config.model.chat_options()))
    for conversation in track(conversations, "reading the conversations of warm_start.data"):
        tokenize_conversation(conversation, turn_tokenizer, config.engine.max_model_len)


def _check_harness(
    config: Config, harness: Any, directory: Path | None, needs_expert: bool
) -> None:
    """Raise ConfigError for a harness whose first task cannot be had, or demonstrated if need be.

    Nobody demonstrates what a harness does.
    """
    with environment_errors(config):
        task = harness.task("train" if harness.size("train") else "held_out", 0)
        if needs_expert:
            _check_expert(config, harness, task, directory)


def _check_expert(
    config: Config, environment: Environment, episode: Episode, directory: Path | None
) -> None:
    try:
        make_expert(environment, episode, random.Random(0))
    except ValueError as error:
        if directory is None:
            raise ConfigError(
                f"{error}; the tiny policy learns from an expert: give model.name the directory "
                "of a model that needs none, or set warm_start.episodes to 0 and give "
                "conversations as warm_start.data"
            ) from None
        raise ConfigError(
            f"{error}, and warm_start.episodes asks for {config.warm_start.episodes} of its "
            "episodes; set it to 0"
        ) from None


def _check_fits(config: Config, directory: Path, environment: Environment) -> None:
    """Raise ValueError for a model whose template, tokens or context do not fit the environment."""
    prompter = load_prompter(directory, config.model.chat_options())
    token_count = Tokenizer.from_file(str(directory / "tokenizer.json")).get_vocab_size()
    vocabulary = read_vocabulary(directory)
    if token_count > vocabulary:
        raise ValueError(
            f"model.name: the tokenizer of {directory} has {token_count} tokens, but the model "
            f"chooses from {vocabulary}"
        )
    load_think_tokens(directory, prompter, environment, config.control)
    if is_harness(environment):
        build_codec(prompter, ())  # its prompts are not known before it asks
        return
    with first_task(environment) as episode:
        prompt = _encode_first_prompt(prompter, environment, episode)
    prompt_tokens = len(prompt)
    if prompt_tokens + config.sampling.max_tokens > config.engine.max_model_len:
        raise ValueError(
            f"engine.max_model_len: {config.engine.max_model_len} tokens do not hold a first "
            f"prompt of {prompt_tokens} and a response of "
            f"{config.sampling.max_tokens} (sampling.max_tokens); raise it"
        )


def _encode_first_prompt(prompter: Prompter, environment: Environment, episode: Any) -> list[int]:
    """Encode the prompt that an episode begins with; ValueError for a template that cannot."""
    if is_conversation(environment):
        check_parts(episode)
        return _encode_conversation(prompter, environment, check_opening(episode.messages))
    answer = environment.format_response("I look around.", "look around")
    if prompter.decode(prompter.encode([answer])[0]).strip() != answer.strip():
        raise ValueError(
            f"model.name: its tokenizer does not give back an answer as it was written: {answer!r}"
        )
    return prompter.encode_prompt(environment.prompt(environment.view(episode)))


def _encode_conversation(
    prompter: Prompter, environment: Environment, opening: list[Message]
) -> list[int]:
    """Encode the first prompt of a conversation.

    ValueError for a template that refuses it, or what may follow: the results of tools, or the
    user's next words where there are no tools.
    """
    tools = tools_of(environment)
    transcript = Transcript(build_codec(prompter, tools))
    answer = Message("assistant", "answer")
    following = Message("user", "question")
    if tools:
        calls = sum(len(message.tool_calls) for message in opening)
        call = ToolCall(tools[0]["function"]["name"])
        answer = number_calls(Message("assistant", tool_calls=(call,)), calls)
        following = Message("tool", "result", tool_call_id=answer.tool_calls[0].id)
    try:
        prompt = transcript.open(to_chat_messages(opening))
        transcript.read(transcript.codec.encode_answer(*to_chat_messages([answer])))
        transcript.extend(to_chat_messages([following], [answer]))
    except ValueError as error:
        raise ValueError(f"model.name: {error}") from None
    return prompt


def check_keys(config: Config, endpoints: Endpoints) -> None:
    """Raise ConfigError when others could connect without a key, or when the keys are wrong."""
    try:
        keys = load_keys(config.security.keys)
    except KeysError as error:
        raise ConfigError(f"security.keys: {error}") from None
    if keys is not None and keys.public != keys.run:
        raise ConfigError(
            f"security.keys: {config.security.keys} has the keys of a machine that joins a run; "
            "give the directory above it"
        )
    bound_addresses = [
        endpoints.actors,
        endpoints.trajectories,
        endpoints.learner,
        endpoints.stats,
        *endpoints.signals,
        *endpoints.turns,
    ]
    if endpoints.shards:
        bound_addresses.append(endpoints.shards)
    if keys is None and not all(map(is_loopback, bound_addresses)):
        raise ConfigError(
            f"controller.host: at {config.controller.host} other machines can connect; make keys "
            "by `run.py keys DIR`, and give that directory as security.keys"
        )
