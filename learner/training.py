"""The learner's numerics as its main loop sees them: begin or restore, update, checkpoint."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from config import Config, Job
from learner import checkpoint
from learner.checkpoint import Evaluated, IntakeState, StagedCheckpoint, TrainingState
from learner.data.rollout_metrics import count_generated_tokens
from learner.data.samples import build_samples
from learner.model.loading import build_skeleton
from learner.model.policy import load_policy
from learner.model.sharding import Policy
from learner.publish import Snapshot, copy_weights
from learner.ranks import Ranks
from learner.update import Updater
from learner.warm_start.policy_cache import warm_start_or_find
from learner.warm_start.warm_start import ReportProgress
from protocol.machine import available_cores
from protocol.messages import Trajectory
from telemetry.analysis.collapse import SignWatch, last_update_before_signs
from telemetry.analysis.exploration import Exploration
from telemetry.sinks.metrics_file import Record

log = logging.getLogger(__name__)


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
        checkpointed: Path | None = None,
    ) -> None:
        """`checkpointed`: the checkpoint of this very policy, if there is one."""
        self._job = job
        self._ranks = updater.ranks
        self._updater = updater
        self.update_number = state.update
        """Updates so far, which is also the version of the weights."""
        self.intake_state = state.intake
        """State from which the intake of trajectories starts."""
        self.tokens = state.tokens
        """Tokens generated for the batches so far, those of rejected responses included."""
        self.began = state.began
        """Seconds of the run before its first batch, in which nothing was trained; 0: none yet.

        They are those of set-up and the first evaluation.
        """
        self.control = state.control
        """The controller's state, for the checkpoint."""
        self.spare: Snapshot | None = None
        """A snapshot that has been published, whose memory the next one may take."""
        self.best = state.best
        """The checkpoint that was evaluated best, of those that are there."""
        self._rollbacks = state.rollbacks
        self._rolled_back_to: int | None = None  # until a checkpoint says so
        self._checkpointed = checkpointed  # or is being written
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[Path] | None = None
        self._watch = self._new_watch()  # of the updates since the last rollback
        self._exploration = exploration or Exploration()
        self._scale_steps()

    @property
    def model(self) -> PreTrainedModel:
        return self._updater.model

    @property
    def policy(self) -> Policy:
        """The model by what is asked of it, on all ranks at the same time."""
        return self._updater.policy

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        return self._updater.optimizer

    @classmethod
    def begin(cls, job: Job, report: ReportProgress, ranks: Ranks | None = None) -> Training:
        """Begin with the policy in the job's model directory.

        It is warm-started if that is asked for and was not done before.
        """
        ranks = ranks or Ranks()
        directory = Path(job.model_dir)
        if job.config.warm_start.is_wanted:
            directory = _warm_start(job, report, ranks)
        model = _load_policy(directory, job.config, ranks)
        return cls(job, _build_updater(model, job.config, ranks), TrainingState())

    @classmethod
    def restore(cls, job: Job, report: ReportProgress, ranks: Ranks | None = None) -> Training:
        """Restore the newest checkpoint of the run. FileNotFoundError if there is none."""
        directory = checkpoint.latest(Path(job.run_dir))
        if directory is None:
            raise FileNotFoundError(f"{job.run_dir} has no checkpoint to resume from")
        updater, state = _restore_updater(directory, job.config, ranks or Ranks())
        updater.rng.bit_generator.state = state.rng
        exploration = checkpoint.load_exploration(directory)
        return cls(job, updater, state, exploration, checkpointed=directory)

    def update(
        self, groups: Sequence[Sequence[Trajectory]], progress: float = 0.0
    ) -> dict[str, float]:
        """Make one update on groups of played episodes, and return its figures.

        `progress`: the share of the training that is over. The figures' names:
        telemetry/metrics_schema.py.
        """
        config = self._job.config
        started = time.monotonic()
        samples = build_samples(
            groups, self.update_number, config.learner, config.control, self._updater.annotate
        )
        metrics = self._exploration.observe_batch(groups, self.update_number)
        metrics |= self._updater.update(samples, progress)
        self.update_number += 1
        self._checkpointed = None
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
        """With `learner.rollback`: look for signs of a collapse in the last update's figures.

        If there are any, go back to the weights (the optimizer, the reference, the value head) of
        the checkpoint before them, and go on from there with smaller steps. Returns the update of
        that checkpoint; the next one is to be written at once. The count of updates goes on, since
        versions of weights never repeat.
        """
        if not self._job.config.learner.rollback:
            return None
        signs = self._watch.observe(record)
        if not signs or self._is_stale_after_rollback():
            return None
        self.wait_written()
        checkpoints = self._ranks.on_rank_0(  # which removes some, when other ranks have written
            lambda: checkpoint.by_update(Path(self._job.run_dir))
        )
        good = last_update_before_signs(self.update_number, list(checkpoints))
        if good is None:
            return None
        log.warning(
            "update %d: %s; back to the weights of update %d", self.update_number, signs, good
        )
        self._roll_back(checkpoints[good], good)
        return good

    def note_evaluation(self, update: int, success: float) -> None:
        """Remember the checkpoint of that update if none was evaluated better."""
        is_better = self.best is None or success >= self.best.success
        if is_better and self._has_checkpoint(update):
            self.best = Evaluated(update, success)

    def snapshot(self) -> Snapshot:
        """Copy the weights as they are now, to be published; on rank 0 alone there are any."""
        into = self.spare
        self.spare = None
        engine = self._job.config.engine
        device = torch.device("cpu")
        if engine.weights == "nccl":
            device = self._ranks.device
        keep = self._ranks.rank == 0
        return copy_weights(self.model, self.update_number, engine.dtype, into, device, keep=keep)

    def release_memory(self) -> None:
        """Give up the memory that only an update needs: gradients, and what torch keeps for it."""
        self.optimizer.zero_grad(set_to_none=True)
        if self._ranks.device.type == "cuda":
            torch.cuda.empty_cache()

    def checkpoint(self, intake: IntakeState | None = None) -> Path:
        """Write a checkpoint, and wait until it is written."""
        writing = self.begin_checkpoint(intake)
        self.wait_written()
        return writing.result()

    def begin_checkpoint(self, intake: IntakeState | None = None) -> Future[Path]:
        """Copy everything that `restore` needs to go on as if nothing had happened.

        It is written beside the next updates; one at a time is. After a rollback, the checkpoints
        between are archived.
        """
        self.wait_written()
        state = self._state(intake or IntakeState())
        if self._checkpointed is not None:
            self._writing = self._writer.submit(self._rewrite_state, self._checkpointed, state)
            return self._writing
        updater = self._updater
        staged = checkpoint.stage(
            Path(self._job.run_dir),
            self.model,
            updater.optimizer,
            state,
            Path(self._job.model_dir),
            checkpoint.ExtraState(updater.reference, updater.critic, self._exploration),
        )
        self._writing = self._writer.submit(self._write, staged, self._rolled_back_to)
        self._rolled_back_to = None
        self._checkpointed = staged.directory
        return self._writing

    def wait_written(self) -> None:
        """Wait for the checkpoint that is being written; raises what that raised."""
        writing = self._writing
        self._writing = None
        if writing is not None:
            writing.result()

    # --- rollbacks

    def _is_stale_after_rollback(self) -> bool:
        """Tell whether batches were played by the weights that are gone.

        They would look like another collapse.
        """
        oldest_age = self._job.config.learner.largest_age()
        return self._rollbacks > 0 and self._watch.updates <= oldest_age + 1

    def _roll_back(self, directory: Path, update: int) -> None:
        rng = self._updater.rng
        self._updater, _ = _restore_updater(directory, self._job.config, self._ranks)
        self._updater.rng = rng
        self._rollbacks += 1
        self._watch = self._new_watch()
        self._scale_steps()
        self._rolled_back_to = update
        self._checkpointed = None

    def _new_watch(self) -> SignWatch:
        return SignWatch(self._job.config.learner.min_effective_sample_size)

    def _scale_steps(self) -> None:
        factor = self._job.config.learner.rollback
        self._updater.step_scale = 1.0
        if factor:
            self._updater.step_scale = factor**self._rollbacks

    # --- checkpoints

    def _has_checkpoint(self, update: int) -> bool:
        """Tell whether the checkpoint of an update is there, or is being written."""
        directory = self._checkpointed
        is_newest = directory is not None and int(directory.name) == update
        return is_newest or update in checkpoint.by_update(Path(self._job.run_dir))

    def _rewrite_state(self, directory: Path, state: TrainingState) -> Path:
        if not self._ranks.rank:
            checkpoint.rewrite_state(directory, state, self._job.config.learner.fsync)
        return directory

    def _write(self, staged: StagedCheckpoint, rolled_back_to: int | None) -> Path:
        """Write a checkpoint, and remove those that are no longer kept."""
        directory = checkpoint.write(staged, self._ranks, self._job.config.learner.fsync)
        if not self._ranks.rank:
            run_dir = Path(self._job.run_dir)
            if rolled_back_to is not None:
                checkpoint.archive_between(run_dir, rolled_back_to, staged.state.update)
            self._prune(run_dir, staged.state.update)
        return directory

    def _state(self, intake: IntakeState) -> TrainingState:
        return TrainingState(
            update=self.update_number,
            intake=intake,
            tokens=self.tokens,
            began=self.began,
            rng=dict(self._updater.rng.bit_generator.state),
            rollbacks=self._rollbacks,
            control=self.control,
            best=self.best,
        )

    def _prune(self, run_dir: Path, update: int) -> None:
        learner = self._job.config.learner
        needed = set()
        if self.best is not None:
            needed.add(self.best.update)
        if learner.rollback:
            numbers = list(checkpoint.by_update(run_dir))
            oldest = last_update_before_signs(update, numbers)
            if oldest is not None:
                # each of these will be the one to go back to
                needed.update(number for number in numbers if number >= oldest)
        checkpoint.prune(run_dir, learner.keep_checkpoints, learner.keep_every, needed)


def _warm_start(job: Job, report: ReportProgress, ranks: Ranks) -> Path:
    """Warm-start the policy on rank 0, which has it in full; return the directory that it is in.

    Raises Stopped on the other ranks when rank 0 raises anything.
    """
    directory: Path | None = None
    try:
        if not ranks.rank:
            directory = warm_start_or_find(job, report, ranks.device)
    finally:
        directory = ranks.broadcast_object(directory)  # others wait for it, whatever comes of it
    if directory is None:
        raise Stopped
    return directory


def _restore_updater(
    directory: Path, config: Config, ranks: Ranks
) -> tuple[Updater, TrainingState]:
    """Build what a checkpoint holds."""
    adapters = checkpoint.read_adapters(directory)
    _check_adapters(directory, config, adapters)
    reference_dir = checkpoint.reference_dir(directory)
    reference = None
    if reference_dir is not None:
        reference = _load_policy(reference_dir, config, ranks)
    model = _load_policy(directory, config, ranks)
    updater = _build_updater(model, config, ranks, reference, adapters)
    state = checkpoint.load(directory, updater.optimizer, ranks)
    if updater.critic is not None:
        checkpoint.load_critic(directory, updater.critic)
    return updater, state


def _check_adapters(directory: Path, config: Config, adapters: dict[str, Tensor]) -> None:
    """Raise ValueError where a checkpoint has adapters and the settings ask for none, or so."""
    if bool(adapters) == bool(config.learner.lora_rank):
        return
    manner = "without"
    if adapters:
        manner = "with"
    raise ValueError(
        f"learner.lora_rank: {directory} was trained {manner} adapters; go on as it was"
    )


def _load_policy(directory: Path, config: Config, ranks: Ranks) -> PreTrainedModel:
    """Load a policy; for a group of ranks, its skeleton, which is filled once it is sharded."""
    checkpointing = config.learner.gradient_checkpointing
    if ranks.is_group:
        return build_skeleton(directory, ranks, gradient_checkpointing=checkpointing)
    return load_policy(directory, ranks.device, gradient_checkpointing=checkpointing)


def _build_updater(
    model: PreTrainedModel,
    config: Config,
    ranks: Ranks,
    reference: PreTrainedModel | None = None,
    adapters: dict[str, Tensor] | None = None,
) -> Updater:
    usual_threads = min(torch.get_num_threads(), available_cores())
    torch.set_num_threads(config.learner.threads or usual_threads)
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
