"""The learner: trajectories in, weights out.

  loop                waits for                                   woken by
  ──────────────────────────────────────────────────────────────────────────────────────────
  intake.run          a trajectory from any actor                 actors
  _listen             word from the controller                    controller
  _train              a full batch, oldest groups first           intake.run, _listen
  one a version       its copy of the weights to be written       _train
  one an evaluation   all its episodes                            intake.run, _listen
  _report             the clock (a second)                        clock

An episode is acknowledged after it stands in the log, so an actor that was told to forget it may;
after a crash the log is read again from the position in the checkpoint, and what the restored
weights have not been trained on is trained on.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from math import inf
from pathlib import Path
from typing import Any

import zmq
import zmq.asyncio
from torch import Tensor

from config import Job
from learner.checkpoint import IntakeState, latest
from learner.data.episode_log import EpisodeLog, read_records, record_batch
from learner.data.groups import ClosedGroups, GroupBuffer
from learner.data.intake import NOT_YET, Arrivals, EpisodeStore, Intake
from learner.data.rollout_metrics import evaluation_metrics, rollout_metrics
from learner.outgoing import WeightPublisher
from learner.publish import Snapshot, WeightWriter
from learner.rank_rpc import lead, lead_start
from learner.ranks import Ranks
from learner.training import Stopped, Training
from learner.update import training_fraction
from protocol.codec import FrameReader, decode
from protocol.delivery import DeliveryClient
from protocol.messages import (
    DropReason,
    Evaluate,
    GroupsDropped,
    LearnerReady,
    Message,
    Shutdown,
    Stats,
    Trajectory,
    WeightsApplied,
)
from protocol.prompting import read_vocabulary
from protocol.router import BatchedRouter
from protocol.security import bind, load_keys
from protocol.validation import AdmissionWindow, Limits, validate_trajectory
from telemetry.probes.clocks import LoopLag
from telemetry.probes.spans import SpanFile
from telemetry.probes.waits import OwnWaits

log = logging.getLogger(__name__)

LAST_WORDS = 1.0
"""Seconds in which controller and supervisor confirm what was said last."""


class Learner:
    """One job's learner.

    `run` returns when the run has reached its last update, its time, or was asked to stop.
    """

    def __init__(
        self,
        job: Job,
        context: zmq.asyncio.Context,
        ranks: Ranks | None = None,
        lasted_seconds: float = 0.0,
    ) -> None:
        """`lasted_seconds`: what the run had lasted before, other processes' time included."""
        self._job = job
        self._started = (
            time.monotonic() - lasted_seconds
        )  # no time of day, which may be set, nor that of another machine
        self._ranks = ranks or Ranks()
        self._config = job.config
        self._run_dir = Path(job.run_dir)
        self._trajectories = context.socket(zmq.ROUTER)
        keys = load_keys(job.config.security.keys)
        beat = self._config.actor.heartbeat_seconds
        bind(self._trajectories, job.endpoints.trajectories, keys, "actors", beat)
        self._reader = FrameReader()
        self._controller = DeliveryClient(
            context, job.endpoints.learner, b"learner", b"controller", keys, beat, self._reader
        )
        self._stats = DeliveryClient(
            context, job.endpoints.stats, b"learner", b"supervisor", keys, beat, self._reader
        )
        self._arrivals = Arrivals()
        self._applied: dict[int, asyncio.Future[WeightsApplied]] = {}
        self._stop = asyncio.Event()
        self._lag = LoopLag()
        self._waits = OwnWaits(time.monotonic)
        self._spans = SpanFile(self._run_dir, "learner")
        self._next_evaluation = 0
        settings = self._config.learner
        self._log = EpisodeLog.open(
            self._run_dir / "episodes", kept_bytes=settings.log_gb * 2**30, fsync=settings.fsync
        )
        self._buffer = GroupBuffer(
            settings.group_size, settings.filter_groups, settings, settings.window()
        )
        vocabulary = read_vocabulary(Path(job.model_dir))
        self._bounds = Limits(
            vocabulary, self._config.engine.max_model_len, self._config.learner.group_size
        )
        self._store = EpisodeStore(self._log, self._buffer)
        self._intake = Intake(
            BatchedRouter(self._trajectories),
            self._store,
            self._buffer,
            self._arrivals,
            self._reader,
            self._flaw,
        )
        self._pause_seconds = 0.0
        self.training: Training | None = None
        self._training_thread = ThreadPoolExecutor(1, thread_name_prefix="training")
        self._tasks = asyncio.TaskGroup()
        self._publisher = WeightWriter(Path(job.weights_dir))
        self._outgoing = WeightPublisher(
            self._publisher,
            self._tasks,
            lambda: self._do("snapshot"),
            self._tell,
            self._written,
            self._config.learner.publish_lag,
            _sender(job),
        )

    def stop(self) -> None:
        """Finish the update under way, write a checkpoint, and end."""
        self._stop.set()

    async def run(self) -> None:
        try:
            async with self._tasks:
                loops = (
                    self._intake.run(),
                    self._listen(),
                    self._controller.resend_loop(),
                    self._stats.run_send_only(),
                    self._report(),
                    self._lag.run(),
                )
                background = [self._tasks.create_task(loop) for loop in loops]
                try:
                    await self._train()
                except Stopped:
                    log.info("stopped before training began")
                for task in background:
                    task.cancel()
        finally:
            self._trajectories.close(linger=1000)
            for caller in (self._controller, self._stats):
                await caller.close(LAST_WORDS)
            self._log.close()
            self._spans.close()
            self._training_thread.shutdown(wait=False)
            self._outgoing.close()

    async def _do(self, method: str, *args: Any, **named: Any) -> Any:
        """A method of Training, on all ranks.

        One thread for all that computes: how many cores torch uses (`learner.threads`) is a
        property of the calling thread.
        """
        call = functools.partial(lead, self._ranks, self.training, method, *args, **named)
        with self._waits.on(f"its own {method}, which is computed"):
            return await asyncio.get_running_loop().run_in_executor(self._training_thread, call)

    # --- the run

    async def _train(self) -> None:
        await self._restore()
        # before the weights: with these in the engines, the controller answers with its own state
        await self._tell(
            LearnerReady(
                next_group=self._buffer.closed.next_group,
                received=self._buffer.unconsumed_keys(),
                consumed_groups=self._buffer.closed.ahead(),
                updates_remaining=self._updates_left(),
                control_state=self.training.control.encode(),
            )
        )
        await self._publish([], last=False)
        await self._outgoing.announced()
        await self._phase("evaluating")
        await self._evaluate(wait=True)
        await self._phase("training", self.training.update_number, self._config.run.max_updates)
        self.training.began = self.training.began or self._seconds()
        if self._config.learner.rollback and latest(self._run_dir) is None:
            await self._checkpoint()
        evaluations: set[asyncio.Task] = set()
        waited_since = time.monotonic()
        while self._updates_left() > 0 and (batch := await self._next_batch()) is not None:
            seconds_wait = time.monotonic() - waited_since
            number = self.training.update_number + 1
            now = self._spans.now()
            self._spans.add("wait", now - seconds_wait, now, update=number)
            groups, trajectories = batch
            record_batch(self._run_dir, number, groups)
            progress = self._share_over()
            with self._spans.span("train", update=number):
                metrics = await self._do("update", trajectories, progress)
            metrics = {
                **rollout_metrics([t for group in trajectories for t in group]),
                **self._buffer.pop_closed_drops(),
                **metrics,
            }
            went_back = await self._do("watch", metrics)
            metrics |= {} if went_back is None else {"rolled_back_to": went_back}
            started = time.monotonic()
            if self._checkpoint_due() or went_back is not None:
                with self._spans.span("checkpoint"):
                    await self._checkpoint()
            with self._spans.span("publish", update=number):
                await self._publish(groups, last=False)
            seconds_publish = time.monotonic() - started
            busy = metrics["seconds_train"] + seconds_publish
            await self._send(
                "update",
                {
                    **metrics,
                    "update": self.training.update_number,
                    "version": self.training.update_number,
                    "seconds_wait": seconds_wait,
                    "seconds_publish": seconds_publish,
                    "seconds_pause": self._pause_seconds,
                    "seconds_write": self._outgoing.written.seconds,
                    "published_bytes": float(self._outgoing.written.size),
                    "idle_share_learner": seconds_wait / (seconds_wait + busy),
                    "queue_trajectories": self._buffer.unconsumed_count(),
                },
            )
            await self._phase("training", self.training.update_number, self._config.run.max_updates)
            every = self._config.eval.every
            if every and self.training.update_number % every == 0 and self._updates_left() > 0:
                evaluations.add(asyncio.create_task(self._evaluate(wait=False)))
            waited_since = time.monotonic()
        await self._finish(evaluations)

    async def _finish(self, evaluations: set[asyncio.Task]) -> None:
        """The last checkpoint, before anything that only measures or waits; the last weights out,
        the last evaluation (unless the user is in a hurry)."""
        version = self.training.update_number
        await self._checkpoint()
        await self._outgoing.announced()
        if self._outgoing.written is not None and self._outgoing.written.version == version:
            await self._until_applied(version)
            self._applied[version] = (
                asyncio.get_running_loop().create_future()
            )  # that of the last word, before which come the cancelled
        await self._publish([], last=True)
        await self._until_applied(version)
        for task in evaluations:
            await task
        if not self._stop.is_set():
            await self._phase("evaluating")
            await self._evaluate(wait=True)
        await self._checkpoint()  # with what was not trained on, which a resumed run goes on with
        await self._tell(Shutdown(reason="the run is over"))
        await self._tell_failures()
        await self._send("dropped", {**self._buffer.cancel_remaining()})

    async def _next_batch(self) -> tuple[list[int], list[list[Trajectory]]] | None:
        """The next batch, oldest groups first; None when time or tokens are used up, or the user
        wants to stop."""
        update = self.training.update_number + 1
        groups = self._config.learner.groups_per_update
        with (
            self._waits.on(lambda: self._buffer.describe_wait(update, groups)),
            self._arrivals.subscribe() as arrived,
        ):
            while not (
                self._stop.is_set() or self._seconds_left() <= 0 or self._tokens_left() <= 0
            ):
                arrived.clear()
                dropped = self._buffer.collect_complete()
                if dropped:
                    await self._tell(GroupsDropped(groups=dropped))
                if (batch := self._buffer.pop_batch(groups)) is not None:
                    self._store.forget_closed()
                    return batch
                await self._until_arrival(arrived, min(max(0.0, self._seconds_left()), 1.0))
        return None

    async def _until_applied(self, version: int) -> None:
        with self._waits.on(f"the controller to have all engines run weights v{version}"):
            await self._applied[version]

    async def _evaluate(self, wait: bool) -> None:
        """Play the held-out games with the weights of now (`wait`: nothing is trained meanwhile)
        and report."""
        evaluation = self._next_evaluation
        self._next_evaluation = self._next_evaluation + 1
        episodes = self._config.eval.episodes
        update = self.training.update_number
        await self._outgoing.announced()  # whoever plays is to know of the weights
        await self._tell(Evaluate(evaluation=evaluation, episodes=episodes))
        with (
            self._waits.on(
                lambda: (
                    f"evaluation {evaluation}: {self._buffer.evaluation_arrivals(evaluation)} of "
                    f"{episodes} episodes are here"
                )
            ),
            self._arrivals.subscribe() as arrived,
        ):
            while (played := self._buffer.pop_evaluation(evaluation, episodes)) is None:
                if wait:
                    await self._phase(
                        "evaluating", self._buffer.evaluation_arrivals(evaluation), episodes
                    )
                if self._stop.is_set():
                    await self._tell(Evaluate(evaluation=evaluation, episodes=0))
                    return
                await self._until_arrival(arrived, 1.0)
                arrived.clear()
        metrics = evaluation_metrics(played)
        self.training.note_evaluation(update, metrics["success"])
        await self._send("evaluation", {"update": update, **metrics})

    async def _until_arrival(self, event: asyncio.Event, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await event.wait()
        except TimeoutError:
            pass

    def _updates_left(self) -> int:
        return max(0, self._config.run.max_updates - self.training.update_number)

    def _tokens_left(self) -> float:
        return (
            self._config.run.max_tokens - self.training.tokens
            if self._config.run.max_tokens
            else inf
        )

    def _share_over(self) -> float:
        """Share of the training that is over."""
        run = self._config.run
        began = self.training.began
        limits = [
            (self.training.update_number, run.max_updates),
            (self._seconds() - began, 60 * run.max_minutes - began),
        ]
        return training_fraction(
            *limits, *([(self.training.tokens, run.max_tokens)] if run.max_tokens else [])
        )

    def _seconds(self) -> float:
        """Of the run, those before a resume included."""
        return time.monotonic() - self._started

    def _seconds_left(self) -> float:
        return 60 * self._config.run.max_minutes - self._seconds()

    # --- weights and checkpoints

    async def _restore(self) -> None:
        """The policy to start from: warm-started, or the last checkpoint and the log since then."""
        start = functools.partial(lead_start, self._ranks, self._job, self._progress_from_thread())
        self.training = await asyncio.get_running_loop().run_in_executor(
            self._training_thread, start
        )
        state = self.training.intake_state
        closed = ClosedGroups(state.next_group, set(state.trained_ahead), set(state.dropped_ahead))
        self._buffer.resume(closed, state.dropped)
        self._next_evaluation = state.next_evaluation
        if self._job.resume:
            for begin, _, frame in read_records(self._run_dir / "episodes", state.log_position):
                self._store.restore(decode(frame), begin)

    def _progress_from_thread(self):
        """A function for other threads: report a phase and how far it is."""
        loop = asyncio.get_running_loop()

        def report(phase: str, done: float | None = None, of: float | None = None) -> None:
            if self._stop.is_set():
                raise Stopped
            asyncio.run_coroutine_threadsafe(self._phase(phase, done, of), loop)

        return report

    async def _publish(self, groups: list[int], last: bool) -> None:
        version = self.training.update_number
        if version not in self._applied:
            self._applied[version] = asyncio.get_running_loop().create_future()
        with self._waits.on("the weights of before to be written"):
            await self._outgoing.publish(version, groups, last=last)

    def _written(self, snapshot: Snapshot) -> None:
        self.training.spare = snapshot
        now = self._spans.now()
        self._spans.add(
            "write weights",
            now - self._outgoing.written.seconds,
            now,
            "weights",
            version=snapshot.version,
        )

    def _checkpoint_due(self) -> bool:
        return self.training.update_number % self._config.learner.checkpoint_every == 0

    async def _checkpoint(self) -> None:
        position = self._store.resume_offset()
        buffer = self._buffer
        intake = IntakeState(
            log_position=position,
            next_group=buffer.closed.next_group,
            trained_ahead=sorted(buffer.closed.trained_ahead),
            dropped_ahead=sorted(buffer.closed.dropped_ahead),
            next_evaluation=self._next_evaluation,
            dropped=buffer.closed_drops(),
        )
        await asyncio.to_thread(self._log.sync)
        await self._do("checkpoint", intake)
        self._log.forget(position)

    # --- messages

    def _flaw(self, message: Message) -> str | None:
        if not isinstance(message, Trajectory):
            return f"{type(message).__name__} is not for the learner"
        if self.training is None:
            return NOT_YET
        learner = self._config.learner
        first = self._buffer.closed.next_group
        end = first + len(self._buffer.closed.ahead()) + learner.slots()  # there are no more
        return validate_trajectory(
            message,
            self._bounds,
            AdmissionWindow(
                first,
                end,
                self._next_evaluation,
                self._config.eval.episodes,
                self.training.update_number,
            ),
        )

    async def _listen(self) -> None:
        while True:
            _, message, frame = await self._controller.receive()
            match message:
                case WeightsApplied() as applied:
                    self._pause_seconds = applied.seconds
                    self._publisher.applied = applied.version
                    self.training.control = applied.control_state.decode()
                    if not self._applied[applied.version].done():
                        self._applied[applied.version].set_result(applied)
                case Trajectory(drop_reason=DropReason.CANCELLED) as cancelled:
                    self._buffer.add(
                        cancelled
                    )  # counted, and not in the log: a run that is resumed plays it
                case Trajectory() as trajectory:
                    self._intake.take([(trajectory, frame)])
                case other:
                    self._reader.refuse(
                        b"controller", f"{type(other).__name__} is not for the learner"
                    )

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            self._spans.flush()
            await self._send(
                "gauge",
                {
                    "loop_lag": self._lag.read().worst,
                    "queue_trajectories": self._buffer.unconsumed_count(),
                    "bad_frames": self._reader.dropped_frames,
                },
            )
            await self._send("waiting", self._waits.seconds())
            await self._tell_failures()

    async def _tell_failures(self) -> None:
        ledger = self._buffer.ledger
        if ledger.totals:
            await self._send("drops", +ledger.totals)
        if ledger.failures:
            await self._send("failures", ledger.failures)

    async def _phase(self, phase: str, done: float | None = None, of: float | None = None) -> None:
        await self._send("phase", {"phase": phase} | ({"done": done, "of": of} if of else {}))

    async def _send(self, event: str, values: dict) -> None:
        await self._stats.send(Stats(source="learner", event=event, values=values))

    async def _tell(self, message: Message) -> None:
        await self._controller.send(message)


def _sender(job: Job) -> Callable[[dict[str, Tensor]], None] | None:
    """What sends weights over NCCL, if they are not written to files."""
    if job.config.engine.weights == "file":
        return None
    from engine.nccl_sender import WeightSender  # vLLM, which takes seconds, and is not everywhere

    return WeightSender(job.endpoints.weights, len(job.endpoints.engines)).send
