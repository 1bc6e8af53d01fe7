"""From a configuration to a job: check what can be checked before anything starts, then lay out the
run directory."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import itertools
import logging
import os
import random
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
from tokenizers import Tokenizer

from config import Config, ConfigError, Endpoints, Job
from config.resolve import to_toml
from controller.think_tokens import think_tokens
from engine.constants import ENGINE_KEY
from envs.base import Environment, EnvironmentFailure, Episode
from envs.play import close_episode, start_episode
from envs.registry import make_environment
from envs.user_errors import describe_error, to_printable
from protocol.files import atomic_write
from protocol.messages import SCHEMA_VERSION
from protocol.prompting import load_prompter, read_vocabulary
from protocol.security import KeysError, is_loopback, load_keys
from supervisor.endpoints import check_launch, check_shards, choose_endpoints
from supervisor.machine_checks import check_machine, choose_weights_parent
from supervisor.resume import leave_damaged_checkpoints
from telemetry.sinks.trackers import check_tracker

JOB_FILE = "job.json"
MAX_REASON = 2000
"""Characters of what an environment says."""

WEIGHTS_PREFIX = "foray-weights-"


log = logging.getLogger(__name__)

NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)
"""What file systems answer that have no flock (Lustre without -o flock, some FUSE and 9p
mounts)."""

LOCK = ".lock"
"""A file that is locked as long as a process uses the directory.

Files, since NFS tells other machines of locks on these alone.
"""

_held: dict[str, int] = {}
"""Directories of jobs, each with the descriptor of its lock."""


def default_run_dir() -> Path:
    return Path("runs") / time.strftime("%Y%m%d-%H%M%S")


def prepare(config: Config, resume: bool, model: Path | None) -> Job:
    """A job in its run directory, which is created here.

    `model`: the policy's directory, unless it is made on the spot.

    Raises ConfigError when it cannot be run as configured.
    """
    if config.run.dir and not resume:
        check_run_dir(Path(config.run.dir))
    check_tracker(config.run.tracker)
    environment = configured_environment(config)
    check_tasks(config, environment)
    check_model(config, environment, model)
    check_launch(config)
    check_shards(config)
    endpoints = choose_endpoints(config)
    check_keys(config, endpoints)
    needed_bytes = check_machine(config, model, Path(config.run.dir or "runs"), resume)
    weights_parent = choose_weights_parent(
        config.run.weights_dir, needed_bytes, Path(config.run.dir or default_run_dir())
    )
    run_dir = _claimed(config.run.dir)
    if resume:
        leave_damaged_checkpoints(run_dir)
    (run_dir / "logs").mkdir(exist_ok=True)
    job = Job(
        config=config,
        endpoints=endpoints,
        run_dir=str(run_dir),
        model_dir=str(model or run_dir / "policy"),
        weights_dir=weights_dir(weights_parent),
        engine_key=os.environ.get(ENGINE_KEY, "")
        or ("" if config.engine.urls else secrets.token_urlsafe(32)),
        permit_key=secrets.token_urlsafe(32),
        run_id=_run_id(run_dir),
        resume=resume,
        schema=SCHEMA_VERSION,
    )
    if not resume:
        keep_settings(job)
    save_job(job)
    return job


def keep_settings(job: Job) -> None:
    """Write the settings that a run is resumed with.

    A run that is resumed does so once it is under way: with those that it could not begin with, it
    would not begin any more.
    """
    atomic_write(Path(job.run_dir) / "config.toml", to_toml(job.config), "run.dir")


def _claimed(name: str) -> Path:
    """The run's directory, made if there is none, and this process's alone until it ends (or
    `clean_up`). Without a name, a new one.

    Raises ConfigError when another run has it.
    """
    run_dir = Path(name) if name else default_run_dir()
    try:
        if name:
            run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        else:
            run_dir = _new(run_dir)
        _hold(run_dir, run_dir)
    except BlockingIOError:
        raise ConfigError(
            f"run.dir: the run in {run_dir} is still under way; wait until it has ended, or give "
            "another directory"
        ) from None
    except OSError as error:
        raise ConfigError(f"run.dir: {run_dir} cannot be written to: {error.strerror}") from None
    return run_dir


def _new(directory: Path) -> Path:
    """Runs that begin in the same second have directories of their own."""
    for number in itertools.count(2):
        try:
            directory.mkdir(mode=0o700, parents=True)
        except FileExistsError:
            directory = directory.with_name(f"{directory.name.partition('.')[0]}.{number}")
        else:
            return directory


def job_file(job: Job) -> Path:
    return Path(job.run_dir) / JOB_FILE


def save_job(job: Job) -> None:
    """Write the job to its run directory, for its processes alone: it has keys."""
    atomic_write(
        job_file(job), msgspec.json.format(msgspec.json.encode(job)), "run.dir", mode=0o600
    )


def _run_id(run_dir: Path) -> str:
    """That of the run that is there already, which is resumed, or a new one: for a copy of another
    run, too."""
    with contextlib.suppress(ConfigError, OSError):
        earlier = Job.load(run_dir / JOB_FILE)
        if earlier.run_id and Path(earlier.run_dir).resolve() == run_dir.resolve():
            return earlier.run_id
    return secrets.token_hex(8)


def weights_dir(parent: Path) -> str:
    """A new directory for published weights, locked until this process ends.

    Unlocked ones, of supervisors that were killed, are removed.

    A lock and not a process number: containers may share memory (`--ipc=host`) without seeing each
    other's processes.
    """
    for left in parent.glob(f"{WEIGHTS_PREFIX}*"):
        with contextlib.suppress(OSError):  # in use, not ours, or gone
            descriptor = locked(left)
            try:
                shutil.rmtree(left)
            finally:
                os.close(descriptor)
    directory = Path(tempfile.mkdtemp(prefix=f".{WEIGHTS_PREFIX}", dir=parent))
    final = parent / directory.name[1:]
    _hold(directory, final)
    directory.rename(final)  # only now may others try it
    return str(final)


def _hold(directory: Path, final: Path) -> None:
    """Lock a directory, which will be called `final`, until `clean_up`.

    Where the disk has no locks, it goes without: nothing but a second run in the same place is
    noticed by them.
    """
    try:
        _held[str(final)] = locked(directory)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        log.warning(
            "the disk of %s has no locks (%s): a second run in it would not be refused",
            final,
            error.strerror,
        )


def locked(directory: Path) -> int:
    """The descriptor of its lock, which holds until that is closed or the process ends.

    BlockingIOError if somebody else has it.
    """
    descriptor = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
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
        if directory in _held:
            os.close(_held.pop(directory))


def check_run_dir(run_dir: Path) -> None:
    """Raises ConfigError for a place where no new run can be."""
    if run_dir.is_file():
        raise ConfigError(f"run.dir: {run_dir} is a file; give a directory")
    if run_dir.is_dir() and any(run_dir.iterdir()):
        raise ConfigError(
            f"run.dir: {run_dir} is not empty; give another directory, or go on with that run by "
            f"--resume {run_dir}"
        )


def configured_environment(config: Config) -> Environment:
    """The environment of a run, which reads its files.

    Raises ConfigError for an unknown one, or settings that it refuses.
    """
    with environment_errors(config):
        return make_environment(config.env.name, **config.environment_settings())


@contextlib.contextmanager
def environment_errors(config: Config) -> Iterator[None]:
    """Turn what code of the environment raises inside into a ConfigError.

    ValueError and EnvironmentFailure say what to change; of others the place is said.
    """
    try:
        yield
    except ValueError as error:
        raise ConfigError(to_printable(str(error), MAX_REASON)) from None
    except EnvironmentFailure as error:
        raise ConfigError(f"{config.env.name}: {to_printable(str(error), MAX_REASON)}") from None
    except (Exception, SystemExit, GeneratorExit, asyncio.CancelledError) as error:
        raise ConfigError(f"env.name: {config.env.name} fails: {describe_error(error)}") from None


@contextlib.contextmanager
def first_task(environment: Environment) -> Iterator[Episode]:
    """The first training task, or the first held-out one where there are none, started to be looked
    at, and closed afterwards."""
    episode = start_episode(environment, "train" if environment.size("train") else "held_out", 0, 0)
    try:
        yield episode
    finally:
        close_episode(episode)


def check_tasks(config: Config, environment: Environment) -> None:
    """Raises ConfigError where there is nothing to train on, and training is asked for."""
    if environment.size("train"):
        return
    for setting, wanted in (
        ("run.updates", config.run.updates),
        ("warm_start.episodes", config.warm_start.episodes),
    ):
        if wanted:
            raise ConfigError(
                f"{setting}: {config.env.name} has no tasks to train on; set it to 0 to evaluate "
                "only"
            )


def check_model(config: Config, environment: Environment, directory: Path | None) -> None:
    """Raises ConfigError for a directory without a model, or a policy that is to learn from
    demonstrations where there are none (or nobody can start the first task, which a demonstration
    needs)."""
    if directory is None or config.warm_start.episodes:
        with environment_errors(config), first_task(environment) as episode:
            _check_expert(config, environment, episode, directory)
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
    with environment_errors(config):
        _check_fits(config, directory, environment)


def _check_expert(
    config: Config, environment: Environment, episode: Episode, directory: Path | None
) -> None:
    try:
        environment.expert(episode, random.Random(0))
    except ValueError as error:
        raise ConfigError(
            f"{error}; the tiny policy learns from an expert: give model.name the directory of a "
            "model that needs none"
            if directory is None
            else (
                f"{error}, and warm_start.episodes asks for {config.warm_start.episodes} of its "
                "episodes; set it to 0"
            )
        ) from None


def _check_fits(config: Config, directory: Path, environment: Environment) -> None:
    """Raises ValueError for a model that cannot be talked to here: for its template, its tokens, or
    the length of its context."""
    prompter = load_prompter(directory)
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    vocabulary = read_vocabulary(directory)
    if tokenizer.get_vocab_size() > vocabulary:
        more = tokenizer.get_vocab_size()
        raise ValueError(
            f"model.name: the tokenizer of {directory} has {more} tokens, but the model chooses "
            f"from {vocabulary}"
        )
    think_tokens(directory, environment, config.control)
    answer = environment.format_response("I look around.", "look around")
    if prompter.text(prompter.tokens([answer])[0]).strip() != answer.strip():
        raise ValueError(
            f"model.name: the tokenizer of {directory} does not give back an answer as it was "
            f"written: {answer!r}"
        )
    with first_task(environment) as episode:
        prompt = len(prompter.prompt(environment.prompt(environment.view(episode))))
    if prompt + config.sampling.max_tokens > config.engine.max_model_len:
        raise ValueError(
            f"engine.max_model_len: {config.engine.max_model_len} tokens do not hold a first "
            f"prompt of {prompt} and a response of "
            f"{config.sampling.max_tokens} (sampling.max_tokens); raise it"
        )


def check_keys(config: Config, endpoints: Endpoints) -> None:
    """Raises ConfigError when others could connect without a key, or there is something wrong with
    the keys."""
    try:
        keys = load_keys(config.security.keys)
    except KeysError as error:
        raise ConfigError(f"security.keys: {error}") from None
    if keys is not None and keys.public != keys.run:
        raise ConfigError(
            f"security.keys: {config.security.keys} has the keys of a machine that joins a run; "
            "give the directory above it"
        )
    listens = [
        endpoints.actors,
        endpoints.trajectories,
        endpoints.learner,
        endpoints.stats,
        *endpoints.signals,
        *endpoints.turns,
    ]
    listens += [endpoints.shards] * bool(endpoints.shards)
    if keys is None and not all(map(is_loopback, listens)):
        raise ConfigError(
            f"controller.host: at {config.controller.host} other machines can connect; make keys "
            "by `run.py keys DIR`, and give that "
            "directory as security.keys"
        )
