"""The learner: trajectories in, weights out.

  loop                waits for                                   woken by
  ──────────────────────────────────────────────────────────────────────────────────────────
  Intake.run          a trajectory from any actor                 actors
  _listen             word from the controller                    controller
  _train              a full batch, oldest groups first           Intake.run, _listen
  one a version       its copy of the weights to be written       _train
  one a checkpoint    its copy of the training to be written      _train
  one an evaluation   all its episodes                            Intake.run, _listen
  Reporter.run        the clock (a second)                        clock

An episode is acknowledged after it stands in the log, so an actor that was told to forget it may.
After a crash the log is read again from the position in the checkpoint, and what the restored
weights have not been trained on is trained on.
"""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import Future
from pathlib import Path
from typing import cast

import zmq
import zmq.asyncio

from config import Job
from learner.checkpoint import IntakeState, latest
from learner.data.episode_log import EpisodeLog, read_records, record_batch
from learner.data.evaluation_metrics import evaluation_metrics
from learner.data.groups import Batch, ClosedGroups, GroupBuffer
from learner.data.intake import NOT_YET, Arrivals, EpisodeStore, Intake
from learner.data.rollout_metrics import rollout_metrics
from learner.engine_sleep import EngineSleep
from learner.links import LearnerLinks, open_links
from learner.publish import AppliedWeights, WeightPublisher, Weights, WeightWriter
from learner.rank_rpc import CheckpointCall, ReleaseCall, UpdateCall, WatchCall
from learner.ranks import Ranks
from learner.reporter import Reporter
from learner.run_limits import RunLimits
from learner.training import Stopped, Training
from learner.training_host import TrainingHost, open_instruments
from protocol.codec import FrameReader, decode
from protocol.messages import (
    DropReason,
    EnginesAsleep,
    Evaluate,
    GroupsDropped,
    LearnerReady,
    Shutdown,
    TasksPlayed,
    Trajectory,
    WeightsApplied,
)
from protocol.prompting import read_vocabulary
from protocol.router import BatchedRouter
from protocol.validation import AdmissionWindow, Limits, validate_trajectory

log = logging.getLogger(__name__)

STARTING_ENGINES = "starting engines"
"""Phase in which the policy is ready, and no engine has its weights yet."""

CLOSING_S = 1.0
"""Seconds in which controller and supervisor confirm what was said last."""


def build_learner(
    job: Job,
    context: zmq.asyncio.Context,
    host: TrainingHost | None = None,
    elapsed_s: float = 0.0,
    reader: FrameReader | None = None,
) -> Learner:
    """Connect the learner of a job, and open its log.

    `host`: the training, by default on one rank. `elapsed_s`: what the run had lasted before, other
    processes' time included.
    """
    settings = job.config.learner
    episode_log = EpisodeLog.open(
        Path(job.run_dir) / "episodes",
        kept_bytes=settings.log_gb * 2**30,
        fsync=settings.fsync,
    )
    return Learner(
        job,
        open_links(job, context, reader or FrameReader()),
        episode_log,
        Limits(
            read_vocabulary(Path(job.model_dir)),
            job.config.engine.max_model_len,
            settings.group_size,
        ),
        host or TrainingHost(job, Ranks(), open_instruments(job)),
        RunLimits(job.config.run, elapsed_s),
    )


class Learner:
    """One job's learner. Make it with `build_learner`.

    `run` returns when the run has reached its last update, its time, or was asked to stop.
    """

    def __init__(
        self,
        job: Job,
        links: LearnerLinks,
        episode_log: EpisodeLog,
        bounds: Limits,
        host: TrainingHost,
        limits: RunLimits,
    ) -> None:
        """`bounds`: what holds for all episodes. `limits`: how long the run may last."""
        settings = job.config.learner
        self._job = job
        self._config = job.config
        self._run_dir = Path(job.run_dir)
        self._links = links
        self._controller = links.controller
        self._log = episode_log
        self._bounds = bounds
        self._host = host
        self._limits = limits
        self._spans = host.instruments.spans
        self._waits = host.instruments.waits
        self._stop = asyncio.Event()
        self._next_evaluation = 0
        self._plan = job.config.evaluation_plan()
        self._pause_s = 0.0
        self._arrivals = Arrivals()
        self._buffer = GroupBuffer(
            settings.group_size, settings.filter_groups, settings, settings.window()
        )
        self._store = EpisodeStore(self._log, self._buffer)
        self._intake = Intake(
            BatchedRouter(links.trajectories),
            self._store,
            self._buffer,
            self._arrivals,
            links.reader,
            self._find_flaw,
        )
        self._reporter = Reporter(
            links.stats, self._buffer, links.reader, host.instruments, self._stop
        )
        self._tasks = asyncio.TaskGroup()
        self._writer = WeightWriter(Path(job.weights_dir))
        self._applied = AppliedWeights()
        self._engine_sleep = EngineSleep(links.controller)
        self._publisher = WeightPublisher(
            host, self._writer, links.controller, self._tasks, settings.publish_lag, links.sender
        )

    @property
    def training(self) -> Training:
        """The training on this rank; RuntimeError before it has been begun or restored."""
        if self._host.training is None:
            raise RuntimeError("the training has not begun")
        return self._host.training

    def stop(self) -> None:
        """Finish the update under way, write a checkpoint, and end."""
        self._stop.set()

    async def run(self) -> None:
        """Train to the end of the run."""
        try:
            async with self._tasks:
                loops = (
                    self._intake.run(),
                    self._listen(),
                    self._controller.resend_loop(),
                    self._links.stats.run_send_only(),
                    self._reporter.run(),
                    self._host.instruments.lag.run(),
                )
                background = [self._tasks.create_task(loop) for loop in loops]
                try:
                    await self._train()
                except Stopped:
                    log.info("stopped before training began")
                for task in background:
                    task.cancel()
        finally:
            await self._close()

    async def _close(self) -> None:
        self._links.trajectories.close(linger=1000)
        for link in (self._controller, self._links.stats):
            await link.close(CLOSING_S)
        self._log.close()
        self._spans.close()
        self._host.close()
        self._publisher.close()

    # --- the run

    async def _train(self) -> None:
        await self._start()
        evaluations: set[asyncio.Task] = set()
        while True:
            waiting_since = time.monotonic()
            batch = await self._next_batch()
            if batch is None:
                break
            await self._make_update(batch, time.monotonic() - waiting_since)
            if self._is_evaluation_due():
                evaluations.add(asyncio.create_task(self.evaluate(wait=False)))
        await self._finish(evaluations)

    async def _start(self) -> None:
        """Begin or restore; play the first evaluation.

        Where no update follows, the evaluation at the end is the only one.
        """
        await self._restore()
        await self._reporter.send_phase(STARTING_ENGINES)
        # before the weights: with these in the engines, the controller answers with its own state
        await self._controller.send(
            LearnerReady(
                next_group=self._buffer.closed.next_group,
                received=self._buffer.unconsumed_keys(),
                consumed_groups=self._buffer.closed.ahead(),
                updates_remaining=self._limits.updates_left(self.training),
                control_state=self.training.control.encode(),
                tasks=self._buffer.unconsumed_tasks(),
            )
        )
        await self._publish([], last=False)
        await self._publisher.wait_announced()
        if self._limits.updates_left(self.training) > 0:
            await self.evaluate(wait=True)
            await self._report_training()
        self.training.began = self.training.began or self._limits.elapsed_s()
        if self._config.learner.rollback and latest(self._run_dir) is None:
            await self._checkpoint(wait=True)

    async def _restore(self) -> None:
        """Take the policy to start from, and the log since the last checkpoint.

        The policy is the warm-started one, or that of the checkpoint.
        """
        await self._host.start(self._reporter.thread_reporter())
        state = self.training.intake_state
        closed = ClosedGroups(state.next_group, set(state.trained_ahead), set(state.dropped_ahead))
        self._buffer.resume(closed, state.dropped)
        self._next_evaluation = state.next_evaluation
        if self._job.resume:
            for begin, _, frame in read_records(self._run_dir / "episodes", state.log_position):
                self._store.restore(cast(Trajectory, decode(frame)), begin)

    async def _next_batch(self) -> Batch | None:
        """Wait for the next batch, oldest groups first.

        None when updates, time or tokens are used up, or the user wants to stop.
        """
        if self._limits.updates_left(self.training) == 0:
            return None
        update = self.training.update_number + 1
        size = self._config.learner.groups_per_update
        with (
            self._waits.on(lambda: self._buffer.describe_wait(update, size)),
            self._arrivals.subscribe() as arrived,
        ):
            while not (self._stop.is_set() or self._limits.are_reached(self.training)):
                arrived.clear()
                dropped = self._buffer.collect_complete()
                batch = self._buffer.pop_batch(size)
                await self._send_outcomes()
                if dropped:
                    await self._controller.send(GroupsDropped(groups=dropped))
                if batch is not None:
                    self._store.forget_closed()
                    return batch
                await _wait_for(arrived, min(max(0.0, self._limits.seconds_left()), 1.0))
        return None

    async def _send_outcomes(self) -> None:
        """Tell the controller what came of groups, before it admits others in their place."""
        outcomes = self._buffer.pop_outcomes()
        if outcomes and self._config.env.curriculum_half_life:
            await self._controller.send(TasksPlayed(outcomes=outcomes))

    async def _make_update(self, batch: Batch, wait_s: float) -> None:
        """Train on a batch, look for a collapse, checkpoint, publish, and tell of it."""
        number = self.training.update_number + 1
        now = self._spans.now()
        self._spans.add("wait", now - wait_s, now, update=number)
        record_batch(self._run_dir, number, batch.groups)
        metrics = await self._train_on(batch, number)
        rolled_back_to = await self._host.call(WatchCall(metrics))
        if rolled_back_to is not None:
            metrics["rolled_back_to"] = rolled_back_to
        started = time.monotonic()
        if self._is_checkpoint_due() or rolled_back_to is not None:
            with self._spans.span("checkpoint"):
                await self._checkpoint(wait=rolled_back_to is not None)
        with self._spans.span("publish", update=number):
            await self._publish(batch.groups, last=False)
        await self._report_update(metrics, wait_s, time.monotonic() - started)
        await self._report_training()

    async def _train_on(self, batch: Batch, number: int) -> dict[str, float]:
        progress = self._limits.fraction(self.training)
        sleep_s = await self._set_asleep(True)
        with self._spans.span("train", update=number):
            metrics = await self._host.call(UpdateCall(batch.trajectories, progress))
        sleep_s += await self._set_asleep(False)
        metrics["seconds_sleep"] = sleep_s
        episodes = [episode for group in batch.trajectories for episode in group]
        return {**rollout_metrics(episodes), **self._buffer.pop_closed_drops(), **metrics}

    async def _set_asleep(self, asleep: bool) -> float:
        """Have the engines give up their GPUs' memory, or take it back, where that is planned.

        Returns the seconds that it took.
        """
        if not self._job.devices.sleeps:
            return 0.0
        started = time.monotonic()
        if not asleep:
            await self._host.call(ReleaseCall())
        with self._spans.span("sleep"), self._waits.on("the engines to sleep or wake"):
            await self._engine_sleep.set_asleep(asleep)
        return time.monotonic() - started

    async def _report_update(
        self, metrics: dict[str, float], wait_s: float, publish_s: float
    ) -> None:
        busy_s = metrics["seconds_train"] + publish_s
        await self._reporter.send(
            "update",
            {
                **metrics,
                "update": self.training.update_number,
                "version": self.training.update_number,
                "seconds_wait": wait_s,
                "seconds_publish": publish_s,
                "seconds_pause": self._pause_s,
                **_measure_publication(self._publisher.newest),
                "idle_share_learner": wait_s / (wait_s + busy_s),
                "queue_trajectories": self._buffer.unconsumed_count(),
            },
        )

    async def _report_training(self) -> None:
        await self._reporter.send_phase(
            "training", self.training.update_number, self._config.run.max_updates
        )

    # --- the end

    async def _finish(self, evaluations: set[asyncio.Task]) -> None:
        """Write the last checkpoint, before anything that only measures or waits; then the rest.

        That is the last weights, and the last evaluation (unless the user is in a hurry).
        """
        await self._reporter.send_phase("ending")
        await self._checkpoint(wait=True)
        await self._publish_last()
        for task in evaluations:
            await task
        if not self._stop.is_set():
            await self.evaluate(wait=True)
            await self._reporter.send_phase("ending")
        # with what was not trained on, which a resumed run goes on with
        await self._checkpoint(wait=True)
        await self._controller.send(Shutdown(reason="the run is over"))
        await self._reporter.send_failures()
        await self._reporter.send("dropped", self._buffer.cancel_remaining())

    async def _publish_last(self) -> None:
        version = self.training.update_number
        await self._publisher.wait_announced()
        newest = self._publisher.newest
        if newest is not None and newest.version == version:
            await self._wait_applied(version)
            # that of the last word, before which come the canceled
            self._applied.expect_again(version)
        await self._publish([], last=True)
        await self._wait_applied(version)

    async def _wait_applied(self, version: int) -> None:
        with self._waits.on(f"the controller to have all engines run weights v{version}"):
            await self._applied.wait(version)

    # --- evaluations

    async def evaluate(self, wait: bool) -> None:
        """Play the evaluation's tasks with the weights that were announced last, and report.

        `wait`: nothing is trained meanwhile. All its tokens are of these weights (invariant 13).
        With `learner.publish_lag`, they are those of some updates ago.
        """
        evaluation = self._next_evaluation
        self._next_evaluation += 1
        await self._publisher.wait_announced()  # whoever plays is to know of the weights
        newest = self._publisher.newest
        assert newest is not None  # the first weights are announced before any evaluation
        played = await self._play_evaluation(evaluation, show_progress=wait)
        if played is None:
            return
        metrics = evaluation_metrics(played, self._plan, newest.version)
        self.training.note_evaluation(newest.version, metrics["success"])
        await self._reporter.send_waits()
        await self._reporter.send("evaluation", {"update": newest.version, **metrics})

    async def _play_evaluation(
        self, evaluation: int, show_progress: bool
    ) -> list[Trajectory] | None:
        """Have the episodes of an evaluation played; None if the user wants to stop."""
        episodes = self._plan.episodes
        await self._controller.send(Evaluate(evaluation=evaluation, episodes=episodes))

        def describe() -> str:
            arrivals = self._buffer.evaluation_arrivals(evaluation)
            return f"evaluation {evaluation}: {arrivals} of {episodes} episodes are here"

        with self._waits.on(describe), self._arrivals.subscribe() as arrived:
            while True:
                played = self._buffer.pop_evaluation(evaluation, episodes)
                if played is not None:
                    return played
                if show_progress:
                    await self._report_evaluation(evaluation, episodes)
                if self._stop.is_set():
                    await self._controller.send(Evaluate(evaluation=evaluation, episodes=0))
                    return None
                await _wait_for(arrived, 1.0)
                arrived.clear()

    async def _report_evaluation(self, evaluation: int, episodes: int) -> None:
        """Tell how much of an evaluation is played, or that the engines have no weights yet."""
        if self._writer.applied_version < 0:
            await self._reporter.send_phase(STARTING_ENGINES)
            return
        arrivals = self._buffer.evaluation_arrivals(evaluation)
        await self._reporter.send_phase("evaluating", arrivals, episodes)

    def _is_evaluation_due(self) -> bool:
        every = self._config.eval.every
        if not every or self._limits.updates_left(self.training) == 0:
            return False
        announced = self.training.update_number - self._config.learner.publish_lag
        return announced > 0 and announced % every == 0

    # --- weights and checkpoints

    async def _publish(self, groups: list[int], last: bool) -> None:
        version = self.training.update_number
        self._applied.expect(version)
        with self._waits.on("the weights of before to be written"):
            await self._publisher.publish(version, groups, last=last)

    def _is_checkpoint_due(self) -> bool:
        return self.training.update_number % self._config.learner.checkpoint_every == 0

    async def _checkpoint(self, wait: bool) -> None:
        """Begin to write a checkpoint, and forget the episodes before it once it is written.

        `wait`: until then.
        """
        position = self._store.resume_offset()
        closed = self._buffer.closed
        intake = IntakeState(
            log_position=position,
            next_group=closed.next_group,
            trained_ahead=sorted(closed.trained_ahead),
            dropped_ahead=sorted(closed.dropped_ahead),
            next_evaluation=self._next_evaluation,
            dropped=self._buffer.closed_drops(),
        )
        await asyncio.to_thread(self._log.sync)
        with self._waits.on("the checkpoint of before to be written"):
            writing = await self._host.call(CheckpointCall(intake))
        finishing = self._tasks.create_task(self._finish_checkpoint(writing, position))
        if wait:
            with self._waits.on("the checkpoint to be written"):
                await finishing

    async def _finish_checkpoint(self, writing: Future[Path], position: int) -> None:
        await asyncio.wrap_future(writing)
        self._log.forget(position)

    # --- messages

    def _find_flaw(self, episode: Trajectory) -> str | None:
        """Say why an episode may not come now; None for one that may."""
        if self._host.training is None:
            return NOT_YET
        closed = self._buffer.closed
        # there are no more
        end = closed.next_group + len(closed.ahead()) + self._config.learner.slots()
        window = AdmissionWindow(
            closed.next_group,
            end,
            self._next_evaluation,
            self._plan.episodes,
            self.training.update_number,
        )
        return validate_trajectory(episode, self._bounds, window)

    async def _listen(self) -> None:
        while True:
            _, message, frame = await self._controller.receive()
            match message:
                case WeightsApplied():
                    self._handle_applied(message)
                case EnginesAsleep():
                    self._engine_sleep.note_answer()
                case Trajectory(drop_reason=DropReason.CANCELED):
                    # counted, and not in the log: a run that is resumed plays it
                    self._buffer.add(message)
                case Trajectory():
                    self._intake.take([(message, frame)])
                case _:
                    flaw = f"{type(message).__name__} is not for the learner"
                    self._links.reader.refuse(b"controller", flaw)

    def _handle_applied(self, applied: WeightsApplied) -> None:
        self._pause_s = applied.seconds
        self._writer.applied_version = applied.version
        self.training.control = applied.control_state.decode()
        self._applied.note(applied)


def _measure_publication(newest: Weights | None) -> dict[str, float]:
    """Return what the newest weights took to be written or sent; nothing before the first."""
    if newest is None:
        return {}
    return {"seconds_write": newest.seconds, "published_bytes": float(newest.size)}


async def _wait_for(event: asyncio.Event, timeout_s: float) -> None:
    """Wait for an event, but no longer than so many seconds."""
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        pass
