"""The learner's numerics as its main loop sees them: begin or restore, update, checkpoint."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import torch
from torch import Tensor
from transformers import PreTrainedModel

from config import Config, ConfigError, Job
from learner import checkpoint
from learner.checkpoint import Evaluated, IntakeState, TrainingState
from learner.data.rollout_metrics import count_generated_tokens
from learner.data.samples import build_samples
from learner.model.policy import load_policy
from learner.publish import Snapshot, sha256_of, snapshot
from learner.ranks import Ranks
from learner.update import Updater
from learner.warm_start.demonstrations import TurnTokenizer
from learner.warm_start.warm_start import warm_start
from protocol.files import atomic_replace
from protocol.machine import available_cores
from protocol.messages import Trajectory
from protocol.prompting import load_prompter, read_turn_end
from telemetry.analysis.collapse import SignWatch, last_update_before_signs
from telemetry.analysis.exploration import Exploration
from telemetry.sinks.metrics_file import Record

log = logging.getLogger(__name__)

LOCK_SECONDS = 1.0
"""Between two tries to lock what another process has locked."""

_NO_LOCK = (
    "run.cache_dir: %s cannot be locked (%s): another run may make the same warm start beside "
    "this one"
)

Progress = Callable[[str, float | None, float | None], None]
"""(phase, done, of): what is under way, and how far, if that can be said. May raise Stopped."""


class Stopped(Exception):
    """The run is to end before there is anything to keep."""


class Training:
    """A policy in training. Make one with `begin` or `restore`."""

    def __init__(
        self,
        job: Job,
        updater: Updater,
        state: TrainingState,
        exploration: Exploration | None = None,
    ) -> None:
        self._job = job
        self._ranks = updater.ranks
        self._updater = updater
        self.update_number = state.update
        """Updates so far, which is also the version of the weights."""
        self.intake_state = state.intake
        """Where the intake of trajectories starts."""
        self.tokens = state.tokens
        """Generated for the batches so far, those of rejected attempts included."""
        self.began = state.began
        """Seconds of the run before its first batch (set-up, the first evaluation), in which
        nothing could be trained; 0: none yet."""
        self.control = state.control
        """The controller's state, for the checkpoint."""
        self.spare: Snapshot | None = None
        """One that has been published, whose memory the next one may take."""
        self._rollbacks = state.rollbacks
        self._back_to: int | None = None
        """The update that training went back to, until a checkpoint says so."""
        self.best = state.best
        """The checkpoint that was evaluated best, of those that are there."""
        self._kept: Path | None = (
            None  # the checkpoint of the policy as it is now, once there is one
        )
        self._watch = SignWatch(
            job.config.learner.min_effective_sample_size
        )  # of the updates since the last rollback
        self._exploration = exploration or Exploration()
        self._scale_steps()

    @property
    def model(self) -> PreTrainedModel:
        return self._updater.model

    @classmethod
    def begin(cls, job: Job, progress: Progress, ranks: Ranks | None = None) -> Training:
        """The policy in the job's model directory, warm-started if that is asked for and was not
        done before."""
        ranks = ranks or Ranks()
        model = _policy(Path(job.model_dir), job.config, ranks)
        if job.config.warm_start.episodes:
            made = False
            try:
                if not ranks.rank:
                    _warm_started(model, job, progress)
                    made = True
            finally:
                made = ranks.tell(made)  # the others wait for it, whatever comes of it
            if not made:
                raise Stopped
            if ranks.rank:
                _warm_started(model, job, progress)  # which is there now
        return cls(job, _updater(model, job.config, ranks), TrainingState())

    @classmethod
    def restore(cls, job: Job, progress: Progress, ranks: Ranks | None = None) -> Training:
        """The newest checkpoint of the run. FileNotFoundError if there is none."""
        directory = checkpoint.latest(Path(job.run_dir))
        if directory is None:
            raise FileNotFoundError(f"{job.run_dir} has no checkpoint to resume from")
        updater, state = _restored(directory, job.config, ranks or Ranks())
        updater.rng.bit_generator.state = state.rng
        training = cls(job, updater, state, checkpoint.load_exploration(directory))
        training._kept = directory
        return training

    def update(
        self, groups: Sequence[Sequence[Trajectory]], progress: float = 0.0
    ) -> dict[str, float]:
        """One update on groups of played episodes, when the share `progress` of all is over; its
        numbers (telemetry/metrics_schema.py)."""
        config = self._job.config
        started = time.monotonic()
        samples = build_samples(
            groups, self.update_number, config.learner, config.control, self._updater.annotate
        )
        metrics = self._exploration.observe_batch(
            groups, self.update_number
        ) | self._updater.update(samples, progress)
        self.update_number += 1
        self._kept = None
        every = config.learner.reference_every
        if every and self.update_number % every == 0:
            self._updater.refresh_reference()
        self.tokens += sum(count_generated_tokens(episode) for group in groups for episode in group)
        return {
            "groups": float(len(groups)),
            "training_tokens": float(self.tokens),
            **metrics,
            "seconds_train": time.monotonic() - started,
        }

    def watch(self, record: Record) -> int | None:
        """With `learner.rollback`: look for signs of a collapse in the last update's numbers.

        If there are any, go back to the weights (the optimizer, the reference, the value head) of
        the checkpoint before them, and go on from there with smaller steps. Returns the update of
        that checkpoint; the next one is to be written at once. The count of updates goes on, since
        versions of weights never repeat.
        """
        if not self._job.config.learner.rollback:
            return None
        found = self._watch.observe(record)
        run_dir = Path(self._job.run_dir)
        if self._rollbacks and self._watch.updates <= self._job.config.learner.largest_age() + 1:
            # these batches were played by the weights that are gone, and would look like another
            # collapse
            found = {}
        checkpoints = checkpoint.by_update(run_dir)
        good = last_update_before_signs(self.update_number, list(checkpoints)) if found else None
        if good is None:
            return None
        log.warning(
            "update %d: %s; back to the weights of update %d", self.update_number, found, good
        )
        rng = self._updater.rng
        self._updater, _ = _restored(checkpoints[good], self._job.config, self._ranks)
        self._updater.rng = rng
        self._rollbacks += 1
        self._watch = SignWatch(self._job.config.learner.min_effective_sample_size)
        self._scale_steps()
        self._back_to = good
        self._kept = None
        return good

    def note_evaluation(self, update: int, success: float) -> None:
        """Remember the checkpoint of that update if none was evaluated better."""
        better = self.best is None or success >= self.best.success
        if better and update in checkpoint.by_update(Path(self._job.run_dir)):
            self.best = Evaluated(update, success)

    def snapshot(self) -> Snapshot:
        """The weights as they are now, to be published."""
        into = self.spare
        self.spare = None
        engine = self._job.config.engine
        device = self._ranks.device if engine.weights == "nccl" else "cpu"
        return snapshot(self.model, self.update_number, engine.dtype, into, device)

    def _scale_steps(self) -> None:
        factor = self._job.config.learner.rollback
        self._updater.step_scale = factor**self._rollbacks if factor else 1.0

    def checkpoint(self, intake: IntakeState | None = None) -> Path:
        """Write everything that `restore` needs to go on as if nothing had happened.

        After a rollback, what lies between is set aside.
        """
        rng = self._updater.rng.bit_generator.state
        state = TrainingState(
            update=self.update_number,
            intake=intake or IntakeState(),
            tokens=self.tokens,
            began=self.began,
            rng=rng,
            rollbacks=self._rollbacks,
            control=self.control,
            best=self.best,
        )
        if self._kept is not None:
            if not self._ranks.rank:
                checkpoint.rewrite_state(self._kept, state, self._job.config.learner.fsync)
            return self._kept
        run_dir = Path(self._job.run_dir)
        model_dir = Path(self._job.model_dir)
        u = self._updater
        beside = checkpoint.ExtraState(u.reference, u.critic, self._exploration)
        path = checkpoint.save(
            run_dir,
            self.model,
            u.optimizer,
            state,
            model_dir,
            beside,
            self._ranks,
            self._job.config.learner.fsync,
        )
        if not self._ranks.rank:
            if self._back_to is not None:
                checkpoint.archive_between(run_dir, self._back_to, self.update_number)
            self._prune(run_dir)
        self._back_to = None
        self._kept = path
        return path

    def _prune(self, run_dir: Path) -> None:
        learner = self._job.config.learner
        needed = {self.best.update} if self.best is not None else set()
        if learner.rollback:
            numbers = list(checkpoint.by_update(run_dir))
            oldest = last_update_before_signs(self.update_number, numbers)
            needed.update(
                number for number in numbers if number >= oldest
            )  # each will be the one to go back to
        checkpoint.prune(run_dir, learner.keep_checkpoints, learner.keep_every, needed)


def _restored(directory: Path, config: Config, ranks: Ranks) -> tuple[Updater, TrainingState]:
    """What a checkpoint holds."""
    kept = checkpoint.reference(directory)
    adapters = checkpoint.kept_adapters(directory)
    if bool(adapters) != bool(config.learner.lora_rank):
        raise ValueError(
            f"learner.lora_rank: {directory} was trained {'with' if adapters else 'without'} "
            "adapters; go on as it was"
        )
    reference = _policy(kept, config, ranks) if kept else None
    updater = _updater(_policy(directory, config, ranks), config, ranks, reference, adapters)
    state = checkpoint.load(directory, updater.optimizer)
    if updater.critic is not None:
        checkpoint.load_critic(directory, updater.critic)
    return updater, state


def _policy(directory: Path, config: Config, ranks: Ranks) -> PreTrainedModel:
    return load_policy(
        directory, ranks.device, gradient_checkpointing=config.learner.gradient_checkpointing
    )


def _updater(
    model: PreTrainedModel,
    config: Config,
    ranks: Ranks,
    reference: PreTrainedModel | None = None,
    adapters: dict[str, Tensor] | None = None,
) -> Updater:
    torch.set_num_threads(config.learner.threads or min(torch.get_num_threads(), available_cores()))
    return Updater(
        model,
        config.learner,
        config.sampling.temperature,
        config.run.seed,
        max_tokens=config.sampling.max_tokens,
        reference=reference,
        adapters=adapters,
        ranks=ranks,
    )


def _warm_started(model: PreTrainedModel, job: Job, progress: Progress) -> None:
    """Warm-start `model` in place, or load the weights of the same warm start done before.

    Runs that want the same one at the same time (the slots of a sweep, seen from one cache) do not
    make it beside each other: one makes it, and the others wait for it.
    """
    config = job.config
    kept = config.cache_dir() / f"policy-{_digest(config, Path(job.model_dir))}"
    if not kept.exists():
        check_room(kept)
        with _alone(kept.with_name(f".{kept.name}.lock"), progress):
            if not kept.exists():
                _warm_start_into(kept, model, job, progress)
                return
    log.info("warm-started before: %s", kept)
    try:
        model.load_state_dict(load_policy(kept).state_dict())
    except Exception as error:  # another user's, who keeps it to himself, or a damaged one
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(
            f"run.cache_dir: {kept} cannot be read ({reason}); remove it, or give another directory"
        ) from error


def check_room(kept: Path) -> None:
    """Raises ConfigError where a policy cannot be kept, before it is made."""
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


@contextlib.contextmanager
def _alone(file: Path, progress: Progress) -> Iterator[None]:
    """Lock a file as soon as nobody else has; the system gives the lock up when its holder dies.

    Meanwhile `progress` may raise.

    Where there is no lock to be had (a disk without them, another user's file) it goes without: the
    worst is that two runs make the same policy.
    """
    try:
        descriptor = _opened(file)
    except OSError as error:
        log.warning(_NO_LOCK, file, error.strerror)
        yield
        return
    try:
        while not _taken(descriptor, file):
            progress("waiting for another run's warm start", None, None)
            time.sleep(LOCK_SECONDS)
        yield
    finally:
        os.close(descriptor)


def _opened(file: Path) -> int:
    """To be read, which is enough to lock it, and which another user's file allows."""
    try:
        return os.open(file, os.O_RDONLY)
    except FileNotFoundError:
        return os.open(file, os.O_RDONLY | os.O_CREAT, 0o666)


def _taken(descriptor: int, file: Path) -> bool:
    """Whether nobody else has the lock; it is ours then, if there is one."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        log.warning(_NO_LOCK, file, error.strerror)
    return True


def _warm_start_into(kept: Path, model: PreTrainedModel, job: Job, progress: Progress) -> None:
    """Warm-start `model` in place, and keep it as `kept`, which is there in full or not at all."""
    model_dir = Path(job.model_dir)
    turn_tokenizer = TurnTokenizer(load_prompter(model_dir), read_turn_end(model_dir))
    stats = warm_start(model, turn_tokenizer, job.config, progress)
    log.info("warm start: %s", json.dumps(stats))
    for left in kept.parent.glob(
        f".{kept.name}-*"
    ):  # by a process that was ended while it wrote one
        shutil.rmtree(left, ignore_errors=True)
    unfinished = kept.with_name(f".{kept.name}-{os.getpid()}")
    with atomic_replace(kept, unfinished, "run.cache_dir"):
        checkpoint.save_policy(unfinished, model, model_dir)
        if not kept.exists():  # by one that had no lock either
            os.replace(unfinished, kept)
    shutil.rmtree(unfinished, ignore_errors=True)


def _digest(config: Config, model_dir: Path) -> str:
    """Of all that a warm-started policy depends on: the settings, the weights before it, and the
    tokens, which show a change of the prompts too."""
    digest = hashlib.sha256(
        msgspec.json.encode(
            [
                config.env.name,
                config.environment_settings(),
                config.model,
                config.warm_start,
                config.learner.precision,
                config.run.seed,
            ]
        )
    )
    for path in (
        model_dir / "tokenizer.json",
        model_dir / "config.json",
        *sorted(model_dir.glob("*.safetensors")),
    ):
        digest.update(sha256_of(path).encode())
    return digest.hexdigest()[:16]
