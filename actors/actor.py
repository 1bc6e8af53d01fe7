"""One actor process: takes leases, plays them, delivers trajectories, forgets them when they are
acknowledged."""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
from collections.abc import Awaitable, Callable, Sequence
from hashlib import blake2b
from typing import TypeVar
from urllib.parse import urlsplit

import zmq
import zmq.asyncio

from actors.crash import ActorSlot
from actors.episode import EpisodePlayer, frame_of, without_turns
from envs.base import Environment
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
"""Heartbeats without an answer: more than an actor may miss, whom the controller only takes its
episodes from."""

ASK_AGAIN_AFTER = 10
"""Heartbeats without an answer, or an acknowledgement, after which the same is sent again.

Who has it already does nothing twice.
"""

CLOSE_SECONDS = 5.0
"""What episodes that are broken off at the end of a run have for closing what they hold open."""

SAY_EVERY = 3
"""Times that something is sent until it is said again that nobody answers."""

T = TypeVar("T")


class ControllerLost(Exception):
    """There is nobody to play for, or somebody else."""


class Actor:
    """Connected to the controller, to the shard that takes its turns (if that is another one), and
    to the learner; `run` returns when the controller says that the run is over."""

    def __init__(
        self,
        context: zmq.asyncio.Context,
        endpoint: str,
        welcome: Welcome,
        environment: Environment,
        prompter: Prompter,
        keys: CurveKeys | None = None,
        ask_again_seconds: float | None = None,
        place: ActorSlot | None = None,
    ) -> None:
        """`ask_again_seconds`: until what is not answered is sent again, ASK_AGAIN_AFTER heartbeats
        if it is not given."""
        self._fleet_place = place or ActorSlot()
        self.name = self._fleet_place.name
        self._context, self._keys, self._host = context, keys, urlsplit(endpoint).hostname
        self._welcome = welcome
        self._ask_again_seconds = ask_again_seconds or ASK_AGAIN_AFTER * welcome.heartbeat_seconds
        self._controller = self._connect(endpoint)
        self._learner_address = f"tcp://{welcome.learner_host or self._host}:{welcome.learner_port}"
        self._learner = self._connect(self._learner_address)
        self._place: ShardAddress | None = None
        self._shard = self._controller  # who takes the turns
        self._listening: asyncio.Task | None = None  # to the shard
        self._group: asyncio.TaskGroup | None = None
        self._player = EpisodePlayer(
            environment,
            prompter,
            self._take_turn,
            step_timeout=welcome.step_timeout,
            max_prompt_tokens=welcome.max_prompt_tokens,
            anchor_texts=welcome.anchor_texts,
            running=self._fleet_place.running,
        )
        self._reader = FrameReader()
        self._leases: asyncio.Queue[Lease] = asyncio.Queue()
        self._episodes: dict[
            tuple[EpisodeKey, int], asyncio.Task[Trajectory | None]
        ] = {}  # that are being played, by their leases
        self._turns: dict[
            tuple[EpisodeKey, int, int], tuple[TurnRequest, asyncio.Future[TurnResult | TurnFailed]]
        ] = {}
        self._deliveries: dict[
            EpisodeKey, asyncio.Future[str]
        ] = {}  # what the learner says to each episode
        self._over = asyncio.Event()
        self._asking = 0
        self._playing = [(report.key, report.lease_attempt) for report in self._fleet_place.reports]
        # heartbeats; not seconds, of which one that was stopped for a while has slept through any
        # number
        self._unanswered = 0
        self._lag = LoopLag()

    async def run(self, episodes: int) -> None:
        """Play `episodes` at a time until the controller says that it is over.

        Raises ControllerLost if it is silent, or another one.
        """
        loops = [self._play_leases() for _ in range(episodes)]
        loops += [
            self._listen_to_controller(),
            self._listen_to_learner(),
            self._beat(),
            self._lag.run(),
            self._until_over(),
        ]
        loops += [self._report(report) for report in self._fleet_place.reports]
        lost: ControllerLost | None = None
        try:
            async with asyncio.TaskGroup() as self._group:
                for loop in loops:
                    self._group.create_task(loop)
        except* _RunIsOver:
            pass
        except* ControllerLost as found:
            lost = found.exceptions[0]
        finally:
            for connection in {self._controller, self._shard, self._learner}:
                connection.close(linger=200)
            await self._player.let_go(CLOSE_SECONDS)
        if (
            lost is not None
        ):  # only now: before Python 3.11.4, what is raised inside except* comes out in a group
            raise lost

    async def _play_leases(self) -> None:
        """One slot: ask for an episode, play it, deliver it, again."""
        while True:
            self._asking += (
                1  # first: a heartbeat that says less than the controller knows of takes that back
            )
            await self._tell_controller(Credit(episodes=1))
            lease = await self._leases.get()
            self._asking -= 1
            trajectory = await self._play(lease)
            if trajectory is not None:  # else cancelled: somebody else plays it, or nobody has to
                await self._deliver(trajectory, lease.lease_attempt)
            self._playing.remove((lease.key, lease.lease_attempt))

    async def _play(self, lease: Lease) -> Trajectory | None:
        """The episode; None if it was cancelled, also in the middle of a step of its
        environment."""
        episode = self._group.create_task(self._player.play(lease))
        self._episodes[lease.key, lease.lease_attempt] = episode
        try:
            await asyncio.wait({episode})
        finally:
            del self._episodes[lease.key, lease.lease_attempt]
        return None if episode.cancelled() else episode.result()

    async def _report(self, crashed: Trajectory) -> None:
        await self._deliver(crashed, crashed.lease_attempt)
        self._playing.remove((crashed.key, crashed.lease_attempt))

    async def _deliver(self, trajectory: Trajectory, attempt: int) -> None:
        """Until the learner has it; then nobody else needs to play it.

        In place of one that it refuses it gets word of that.
        """
        why = await self._answer_to(trajectory)
        if why:
            log.warning("the learner refuses episode %s: %s", trajectory.key.id, why)
            why = await self._answer_to(
                without_turns(trajectory, DropReason.ENGINE_ERROR, f"the learner refuses it: {why}")
            )
        if why:
            log.warning("nor does it take word of that: %s", why)
        for connection in {self._controller, self._shard}:
            await connection.send(encode(EpisodeEnded(key=trajectory.key, lease_attempt=attempt)))

    async def _answer_to(self, trajectory: Trajectory) -> str:
        """Why the learner refuses the episode; "" once it has it."""
        key = trajectory.key
        # Of all attempts that are delivered from here.
        answer = self._deliveries.setdefault(key, asyncio.get_running_loop().create_future())
        delivery = (
            f"episode {key.id} from the learner at {self._learner_address} (learner.host, "
            "learner.port)"
        )
        why = await self._until(
            delivery, answer, functools.partial(self._learner.send, frame_of(trajectory))
        )
        self._deliveries.pop(key, None)
        return why

    async def _take_turn(self, request: TurnRequest) -> TurnResult | TurnFailed:
        turn = (request.key, request.lease_attempt, request.turn_index)
        future = asyncio.get_running_loop().create_future()
        self._turns[turn] = request, future
        try:
            name = f"turn {request.turn_index} of {request.key.id} from the controller"
            return await self._until(name, future, functools.partial(self._ask, request))
        finally:
            del self._turns[turn]

    async def _until(
        self, what: str, answer: Awaitable[T], send: Callable[[], Awaitable[None]]
    ) -> T:
        """What answers to what `send` sends (`what`, in words): again and again, since it is lost
        with the connection that it was on its way over."""
        waiting = asyncio.ensure_future(answer)
        try:
            for number in itertools.count():
                if number and number % SAY_EVERY == 0:
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
            self._unanswered = 0
            match message:
                case HeartbeatAck(session=session) if session != self._welcome.session:
                    raise ControllerLost("another controller answers: the run was started again")
                case HeartbeatAck(shards=shards):
                    await self._move(choose_shard(self.name, shards))
                case Lease() as lease:
                    self._playing.append((lease.key, lease.lease_attempt))
                    self._leases.put_nowait(lease)
                case TurnResult() | TurnFailed() as answer:
                    self._answered(answer)
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
                    self._answered(answer)

    def _answered(self, answer: TurnResult | TurnFailed) -> None:
        _, future = self._turns.get(
            (answer.key, answer.lease_attempt, answer.turn_index), (None, None)
        )
        if future is not None and not future.done():
            future.set_result(answer)

    async def _move(self, place: ShardAddress | None) -> None:
        """Ask the shard there for turns from now on (None: the controller), first for those that
        are waited for. What the shard before it still says is not heard."""
        if place == self._place:
            return
        if self._listening is not None:
            self._listening.cancel()
            self._listening = None
            self._shard.close(linger=0)
        self._place = place
        self._shard = self._controller
        if place is not None:
            self._shard = self._connect(f"tcp://{place.host or self._host}:{place.port}")
            self._listening = self._group.create_task(self._listen_to_shard(self._shard))
        for request, _ in list(self._turns.values()):
            await self._ask(request)

    async def _ask(self, request: TurnRequest) -> None:
        await self._shard.send(encode(request))

    async def _listen_to_learner(self) -> None:
        while True:
            match self._reader.read(b"learner", await self._learner.recv()):
                case Ack(keys=keys):
                    for key in keys:
                        self._delivered(key, "")
                case Refused(key=key, why=why):
                    self._delivered(key, why)

    def _delivered(self, key: EpisodeKey, why: str) -> None:
        answer = self._deliveries.get(key)
        if answer is not None and not answer.done():
            answer.set_result(why)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._welcome.heartbeat_seconds)
            await self._tell_controller(
                Heartbeat(
                    loop_lag=self._lag.read().worst, asking=self._asking, playing=self._playing
                )
            )
            self._unanswered += 1
            if self._unanswered > CONTROLLER_LOST_AFTER:
                raise ControllerLost(
                    f"the controller has not answered {CONTROLLER_LOST_AFTER} heartbeats"
                )

    async def _until_over(self) -> None:
        await self._over.wait()
        raise _RunIsOver

    async def _tell_controller(self, message: Message) -> None:
        await self._controller.send(encode(message))

    def _connect(self, endpoint: str) -> zmq.asyncio.Socket:
        connection = self._context.socket(zmq.DEALER)
        connection.set(zmq.IDENTITY, self.name)
        connect(connection, endpoint, self._keys, self._welcome.heartbeat_seconds)
        return connection


class _RunIsOver(Exception):
    """Ends the actor's loops."""


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
