"""An actor: takes leases, plays them and delivers their trajectories.

It forgets a trajectory once the learner has acknowledged it.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
from collections.abc import Awaitable, Callable, Sequence
from hashlib import blake2b
from typing import NamedTuple, TypeVar
from urllib.parse import urlsplit

import zmq
import zmq.asyncio

from actors.crash import ActorSlot
from actors.episode import EpisodePlayer, drop_turns, encode_trajectory
from envs.registry import Environments
from protocol.codec import FrameReader, encode
from protocol.messages import (
    Ack,
    Credit,
    DropReason,
    EpisodeEnded,
    EpisodeKey,
    Heartbeat,
    HeartbeatAck,
    Lease,
    Message,
    Refused,
    Revoked,
    ShardAddress,
    Shutdown,
    Trajectory,
    TurnFailed,
    TurnRequest,
    TurnResult,
    Welcome,
)
from protocol.prompting import Prompter
from protocol.security import CurveKeys, connect
from telemetry.probes.clocks import LoopLag

log = logging.getLogger(__name__)


CONTROLLER_LOST_AFTER = 10
"""Heartbeats without an answer after which an actor leaves its controller.

They are more than an actor may miss, whom the controller only takes its episodes from.
"""

ASK_AGAIN_AFTER = 10
"""Heartbeats without an answer, or an acknowledgement, after which a message is sent again.

Receivers that have it already do nothing twice.
"""

CLOSE_SECONDS = 4.0
"""Time for episodes that are broken off at the end of a run to close what they hold open.

It is less than the 5 s that a run gives its processes to end in.
"""

WARN_EVERY_TRIES = 3
"""Tries of sending a message after which the log says again that nobody answers."""

T = TypeVar("T")

LeaseId = tuple[EpisodeKey, int]
"""Episode, and which lease of it."""

TurnId = tuple[EpisodeKey, int, int]
"""Episode, which lease of it, and which turn."""


class ControllerLost(Exception):
    """The controller is silent, or another one answers in its place."""


class Actor:
    """An actor with its connections to controller, shard and learner.

    The shard takes its turns, and may be the controller itself.
    """

    def __init__(
        self,
        context: zmq.asyncio.Context,
        endpoint: str,
        welcome: Welcome,
        environments: Environments,
        prompter: Prompter,
        keys: CurveKeys | None = None,
        ask_again_seconds: float | None = None,
        slot: ActorSlot | None = None,
    ) -> None:
        """Connect to the controller and the learner.

        A message without an answer is sent again after `ask_again_seconds`, by default
        ASK_AGAIN_AFTER heartbeats.
        """
        self._slot = slot or ActorSlot()
        self.name = self._slot.name
        self._context = context
        self._keys = keys
        self._host = urlsplit(endpoint).hostname
        self._welcome = welcome
        self._ask_again_seconds = ask_again_seconds or ASK_AGAIN_AFTER * welcome.heartbeat_seconds
        self._controller = self._connect(endpoint)
        self._learner_address = f"tcp://{welcome.learner_host or self._host}:{welcome.learner_port}"
        self._learner = self._connect(self._learner_address)
        self._shard_address: ShardAddress | None = None  # None: the controller takes the turns
        self._shard = self._controller
        self._shard_listener: asyncio.Task | None = None
        self._group = asyncio.TaskGroup()  # entered by `run`
        self._player = self._build_player(environments, prompter)
        self._reader = FrameReader()
        self._leases: asyncio.Queue[Lease] = asyncio.Queue()
        self._episodes: dict[LeaseId, asyncio.Task[Trajectory | None]] = {}  # being played
        self._pending_turns: dict[TurnId, _PendingTurn] = {}
        # Why the learner refuses each episode that it was sent; "" once it has it.
        self._deliveries: dict[EpisodeKey, asyncio.Future[str]] = {}
        self._over = asyncio.Event()
        self.is_stopped = False
        """Whether `stop` was called, so that `run` may end before the job does."""
        self._asking = 0
        self._playing = [(report.key, report.lease_attempt) for report in self._slot.reports]
        # They count heartbeats, since a process that was stopped sleeps through any number of
        # seconds.
        self._unanswered_heartbeats = 0
        self._lag = LoopLag()

    def _build_player(self, environments: Environments, prompter: Prompter) -> EpisodePlayer:
        welcome = self._welcome
        return EpisodePlayer(
            environments,
            prompter,
            self._take_turn,
            step_timeout=welcome.step_timeout,
            max_prompt_tokens=welcome.max_prompt_tokens,
            anchor_texts=welcome.anchor_texts,
            running=self._slot.running,
        )

    async def run(self, episodes: int) -> None:
        """Play `episodes` at a time until the controller says that the run is over.

        Raises ControllerLost if the controller is silent, or another one answers.
        """
        loops = [self._play_leases() for _ in range(episodes)]
        loops += [
            self._listen_to_controller(),
            self._listen_to_learner(),
            self._heartbeat_loop(),
            self._lag.run(),
            self._wait_until_over(),
        ]
        loops += [self._deliver_report(report) for report in self._slot.reports]
        lost: ControllerLost | ExceptionGroup[ControllerLost] | None = None
        try:
            async with self._group:
                for loop in loops:
                    self._group.create_task(loop)
        except* _RunIsOver:
            pass
        except* ControllerLost as group:
            lost = group.exceptions[0]
        finally:
            for connection in {self._controller, self._shard, self._learner}:
                connection.close(linger=200)
            await self._player.wait_closed(CLOSE_SECONDS)
        # Only now: before Python 3.11.4, what is raised inside except* comes out in a group.
        if lost is not None:
            raise lost

    def stop(self) -> None:
        """Have `run` end, as it does at the end of the job."""
        self.is_stopped = True
        self._over.set()

    async def _play_leases(self) -> None:
        """Ask for an episode, play it, deliver it, and again, forever."""
        while True:
            # Counted first: a heartbeat that names less than the controller knows of takes that
            # back.
            self._asking += 1
            await self._tell_controller(Credit(episodes=1))
            lease = await self._leases.get()
            self._asking -= 1
            trajectory = await self._play(lease)
            if trajectory is not None:  # else canceled: somebody else plays it, or nobody has to
                await self._deliver(trajectory, lease.lease_attempt)
            self._playing.remove((lease.key, lease.lease_attempt))

    async def _play(self, lease: Lease) -> Trajectory | None:
        """Play an episode; None if it was canceled, maybe in the middle of a step."""
        episode = self._group.create_task(self._player.play(lease))
        self._episodes[lease.key, lease.lease_attempt] = episode
        try:
            await asyncio.wait({episode})
        finally:
            del self._episodes[lease.key, lease.lease_attempt]
        if episode.cancelled():
            return None
        return episode.result()

    async def _deliver_report(self, crashed: Trajectory) -> None:
        await self._deliver(crashed, crashed.lease_attempt)
        self._playing.remove((crashed.key, crashed.lease_attempt))

    async def _deliver(self, trajectory: Trajectory, lease_attempt: int) -> None:
        """Deliver a trajectory, and end its lease: nobody else needs to play it.

        If the learner refuses it, a notice of that is delivered in its place.
        """
        refusal = await self._send_to_learner(trajectory)
        if refusal:
            log.warning("the learner refuses episode %s: %s", trajectory.key.id, refusal)
            notice = f"the learner refuses it: {refusal}"
            refusal = await self._send_to_learner(
                drop_turns(trajectory, DropReason.ENGINE_ERROR, notice)
            )
        if refusal:
            log.warning("nor does it take word of that: %s", refusal)
        for connection in {self._controller, self._shard}:
            await connection.send(
                encode(EpisodeEnded(key=trajectory.key, lease_attempt=lease_attempt))
            )

    async def _send_to_learner(self, trajectory: Trajectory) -> str:
        """Return why the learner refuses the episode; "" once it has it."""
        key = trajectory.key
        # The same one for all leases of the episode that are delivered from here.
        answer = self._deliveries.setdefault(key, asyncio.get_running_loop().create_future())
        delivery = (
            f"episode {key.id} from the learner at {self._learner_address} (learner.host, "
            "learner.port)"
        )
        refusal = await self._send_until_answered(
            delivery, answer, functools.partial(self._learner.send, encode_trajectory(trajectory))
        )
        self._deliveries.pop(key, None)
        return refusal

    async def _take_turn(self, request: TurnRequest) -> TurnResult | TurnFailed:
        turn_id = _turn_id(request)
        answer = asyncio.get_running_loop().create_future()
        self._pending_turns[turn_id] = _PendingTurn(request, answer)
        try:
            name = f"turn {request.turn_index + 1} of {request.key.id} from the controller"
            return await self._send_until_answered(
                name, answer, functools.partial(self._send_request, request)
            )
        finally:
            del self._pending_turns[turn_id]

    async def _send_until_answered(
        self, what: str, answer: Awaitable[T], send: Callable[[], Awaitable[object]]
    ) -> T:
        """Send a message, which the log calls `what`, again and again, until there is an answer.

        A message is lost with the connection that it was on its way over.
        """
        waiting = asyncio.ensure_future(answer)
        try:
            for number in itertools.count():
                if number and number % WARN_EVERY_TRIES == 0:
                    log.warning(
                        "no answer to %s for %.0f s; it is sent again",
                        what,
                        number * self._ask_again_seconds,
                    )
                await send()
                await asyncio.wait({waiting}, timeout=self._ask_again_seconds)
                if waiting.done():
                    break
            return waiting.result()
        finally:
            waiting.cancel()

    async def _listen_to_controller(self) -> None:
        while True:
            message = self._reader.read(b"controller", await self._controller.recv())
            self._unanswered_heartbeats = 0
            match message:
                case HeartbeatAck(session=session) if session != self._welcome.session:
                    raise ControllerLost("another controller answers: the run was started again")
                case HeartbeatAck(shards=shards):
                    await self._use_shard(choose_shard(self.name, shards))
                case Lease() as lease:
                    self._playing.append((lease.key, lease.lease_attempt))
                    self._leases.put_nowait(lease)
                case TurnResult() | TurnFailed() as answer:
                    self._resolve_turn(answer)
                case Revoked(leases=leases):
                    for lease in leases:
                        if lease in self._episodes:
                            self._episodes[lease].cancel()
                case Shutdown():
                    self._over.set()

    async def _listen_to_shard(self, shard: zmq.asyncio.Socket) -> None:
        while True:
            match self._reader.read(b"shard", await shard.recv()):
                case TurnResult() | TurnFailed() as answer:
                    self._resolve_turn(answer)

    def _resolve_turn(self, answer: TurnResult | TurnFailed) -> None:
        turn = self._pending_turns.get(_turn_id(answer))
        if turn is not None and not turn.answer.done():
            turn.answer.set_result(answer)

    async def _use_shard(self, address: ShardAddress | None) -> None:
        """Ask the shard at `address` for turns from now on; None: the controller.

        Pending turns are asked for first. Answers of the shard before it are no longer read.
        """
        if address == self._shard_address:
            return
        if self._shard_listener is not None:
            self._shard_listener.cancel()
            self._shard_listener = None
            self._shard.close(linger=0)
        self._shard_address = address
        self._shard = self._controller
        if address is not None:
            self._shard = self._connect(f"tcp://{address.host or self._host}:{address.port}")
            self._shard_listener = self._group.create_task(self._listen_to_shard(self._shard))
        for turn in list(self._pending_turns.values()):
            await self._send_request(turn.request)

    async def _send_request(self, request: TurnRequest) -> None:
        await self._shard.send(encode(request))

    async def _listen_to_learner(self) -> None:
        while True:
            match self._reader.read(b"learner", await self._learner.recv()):
                case Ack(keys=keys):
                    for key in keys:
                        self._resolve_delivery(key, "")
                case Refused(key=key, why=refusal):
                    self._resolve_delivery(key, refusal)

    def _resolve_delivery(self, key: EpisodeKey, refusal: str) -> None:
        answer = self._deliveries.get(key)
        if answer is not None and not answer.done():
            answer.set_result(refusal)

    async def _heartbeat_loop(self) -> None:
        while True:
            await asyncio.sleep(self._welcome.heartbeat_seconds)
            await self._tell_controller(
                Heartbeat(
                    loop_lag=self._lag.read().worst, asking=self._asking, playing=self._playing
                )
            )
            self._unanswered_heartbeats += 1
            if self._unanswered_heartbeats > CONTROLLER_LOST_AFTER:
                raise ControllerLost(
                    f"the controller has not answered {CONTROLLER_LOST_AFTER} heartbeats"
                )

    async def _wait_until_over(self) -> None:
        await self._over.wait()
        raise _RunIsOver

    async def _tell_controller(self, message: Message) -> None:
        await self._controller.send(encode(message))

    def _connect(self, endpoint: str) -> zmq.asyncio.Socket:
        connection = self._context.socket(zmq.DEALER)
        connection.set(zmq.IDENTITY, self.name)
        connect(connection, endpoint, self._keys, self._welcome.heartbeat_seconds)
        return connection


class _PendingTurn(NamedTuple):
    """A turn that was asked for, and its answer to be."""

    request: TurnRequest
    answer: asyncio.Future[TurnResult | TurnFailed]


def _turn_id(message: TurnRequest | TurnResult | TurnFailed) -> TurnId:
    return message.key, message.lease_attempt, message.turn_index


class _RunIsOver(Exception):
    """The run is over, which ends the actor's loops."""


def choose_shard(actor: bytes, shards: Sequence[ShardAddress]) -> ShardAddress | None:
    """Choose the shard that takes the turns of `actor`; None is the controller.

    The controller takes its share of the actors, too. This is rendezvous hashing, a consistent
    hash without a table (Thaler and Ravishankar 1998, "Using name-based mappings to increase hit
    rates"). Everybody who knows the same shards comes to the same choice. When one goes, only its
    actors move, and when it is back, they return.
    """
    return max([None, *shards], key=lambda address: _rank_shard(actor, address))


def _rank_shard(actor: bytes, address: ShardAddress | None) -> bytes:
    name = b"" if address is None else f"{address.host}:{address.port}".encode()
    return blake2b(actor + b"\0" + name, digest_size=8).digest()
