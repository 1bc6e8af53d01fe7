"""Warm-started policies that are kept for the next run that wants the same one."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import torch
from safetensors import SafetensorError, safe_open

from config import Config, ConfigError, Job
from envs.registry import source_of_environment
from learner import checkpoint
from learner.model.policy import load_policy
from learner.publish import sha256_of
from learner.warm_start.conversation_file import content_digest
from learner.warm_start.demonstrations import TurnTokenizer
from learner.warm_start.warm_start import ReportProgress, warm_start
from protocol.files import atomic_replace
from protocol.prompting import load_prompter

log = logging.getLogger(__name__)

LOCK_POLL_S = 1.0
"""Seconds between two tries to lock what another process has locked."""

CHAT_FILES = ("chat_template.jinja", "tokenizer_config.json", "generation_config.json")
"""Files of a model that say how it is talked to, and where its turns end."""

_NO_LOCK = (
    "run.cache_dir: %s cannot be locked (%s): another run may make the same warm start beside "
    "this one"
)


def warm_start_or_find(job: Job, report: ReportProgress, device: torch.device) -> Path:
    """Warm-start the job's policy, or find the same warm start done before; return its directory.

    Runs that want the same one at the same time (the slots of a sweep, seen from one cache) do not
    make it beside each other: one makes it, and the others wait for it. ConfigError where it cannot
    be kept, or read.
    """
    kept = job.config.cache_dir() / f"policy-{policy_digest(job.config, Path(job.model_dir))}"
    if not kept.exists():
        check_cache_dir(kept)
        with _exclusive_lock(kept.with_name(f".{kept.name}.lock"), report):
            if not kept.exists():
                _warm_start_and_keep(kept, job, report, device)
                return kept
    log.info("warm-started before: %s", kept)
    _check_readable(kept)
    return kept


def _check_readable(kept: Path) -> None:
    """Raise ConfigError for weights of another user, who keeps them to himself, or damaged ones."""
    try:
        for file in kept.iterdir():
            if file.suffix == ".safetensors":
                with safe_open(file, framework="pt"):
                    pass
    except (OSError, SafetensorError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(
            f"run.cache_dir: {kept} cannot be read ({reason}); remove it, or give another directory"
        ) from error


def check_cache_dir(kept: Path) -> None:
    """Raise ConfigError where a policy cannot be kept, before it is made."""
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"run.cache_dir: {kept.parent} cannot be made: {error.strerror}; give another directory"
        ) from None
    if not os.access(kept.parent, os.W_OK | os.X_OK):
        raise ConfigError(
            f"run.cache_dir: {kept.parent} cannot be written to, and does not hold this warm "
            f"start ({kept.name}); give another directory"
        )


def policy_digest(config: Config, model_dir: Path) -> str:
    """Digest all that a warm-started policy depends on.

    These are the settings, the weights before it, the tokens, which show a change of the prompts
    too, and the source of an environment of one's own, whose expert may have changed. Of a file of
    conversations it is what stands in it, wherever it lies.
    """
    learned_from = config.warm_start
    if learned_from.data:
        learned_from = msgspec.structs.replace(learned_from, data=content_digest(config))
    settings = [
        config.env.name,
        config.environment_settings(),
        config.model,
        learned_from,
        config.learner.precision,
        config.run.seed,
    ]
    digest = hashlib.sha256(msgspec.json.encode(settings))
    digest.update(source_of_environment(config.env.name))
    weights = sorted(model_dir.glob("*.safetensors"))
    files = [model_dir / name for name in CHAT_FILES if (model_dir / name).is_file()]
    for path in (model_dir / "tokenizer.json", model_dir / "config.json", *files, *weights):
        digest.update(sha256_of(path).encode())
    return digest.hexdigest()[:16]


def _warm_start_and_keep(
    kept: Path, job: Job, report: ReportProgress, device: torch.device
) -> None:
    """Warm-start the job's policy as `kept`, which is there in full or not at all."""
    model_dir = Path(job.model_dir)
    checkpointing = job.config.learner.gradient_checkpointing
    model = load_policy(model_dir, device, gradient_checkpointing=checkpointing)
    turn_tokenizer = TurnTokenizer(load_prompter(model_dir, job.config.model.chat_options()))
    stats = warm_start(model, turn_tokenizer, job.config, report)
    log.info("warm start: %s", json.dumps(stats))
    for abandoned in kept.parent.glob(f".{kept.name}-*"):
        # by a process that was ended while it wrote one
        shutil.rmtree(abandoned, ignore_errors=True)
    unfinished = kept.with_name(f".{kept.name}-{os.getpid()}")
    with atomic_replace(kept, unfinished, "run.cache_dir"):
        checkpoint.save_policy(unfinished, model, model_dir)
        if not kept.exists():  # by one that had no lock either
            os.replace(unfinished, kept)
    shutil.rmtree(unfinished, ignore_errors=True)


@contextlib.contextmanager
def _exclusive_lock(file: Path, report: ReportProgress) -> Iterator[None]:
    """Lock a file as soon as nobody else has; the system gives the lock up when its holder dies.

    Meanwhile `report` may raise. Where there is no lock to be had (a disk without them, another
    user's file) it goes without: the worst is that two runs make the same policy.
    """
    try:
        descriptor = _open_lock(file)
    except OSError as error:
        log.warning(_NO_LOCK, file, error.strerror)
        yield
        return
    try:
        while not _try_lock(descriptor, file):
            report("waiting for another run's warm start", None, None)
            time.sleep(LOCK_POLL_S)
        yield
    finally:
        os.close(descriptor)


def _open_lock(file: Path) -> int:
    """Open a file for reading, which is enough to lock it, and which another's file allows."""
    try:
        return os.open(file, os.O_RDONLY)
    except FileNotFoundError:
        return os.open(file, os.O_RDONLY | os.O_CREAT, 0o666)


def _try_lock(descriptor: int, file: Path) -> bool:
    """Lock a file unless somebody else has; True where there are no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        log.warning(_NO_LOCK, file, error.strerror)
    return True
