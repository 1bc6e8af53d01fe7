"""An actor, and the two that it talks to, who are this test.

What is lost on its way is sent again.
"""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import zmq
import zmq.asyncio

from actors.actor import WARN_EVERY_TRIES, Actor, ControllerLost, choose_shard
from controller.responses import EMPTY_RESPONSE
from envs.registry import Environments, make_environment
from protocol.codec import FrameReader, encode
from protocol.messages import (
    Ack,
    Credit,
    DropReason,
    EpisodeEnded,
    EpisodeKey,
    Heartbeat,
    HeartbeatAck,
    Message,
    Refused,
    Revoked,
    ShardAddress,
    Shutdown,
    Trajectory,
    TurnRequest,
)
from protocol.prompting import load_prompter
from tests.fixtures.messages import make_lease, make_turn_request, make_turn_result, make_welcome

KEY = EpisodeKey(0, 0)
RESULT = make_turn_result(make_turn_request(KEY))


class Bench:
    """A controller and a learner that say what the test has them say."""

    def __init__(self, policy: Path, heartbeat_seconds: float, ask_again_seconds: float) -> None:
        self.context = zmq.asyncio.Context()
        self.environment = make_environment("search", max_turns=1)
        self.reader = FrameReader()
        self.controller = self.context.socket(zmq.ROUTER)
        self.learner = self.context.socket(zmq.ROUTER)
        self.shard = self.context.socket(zmq.ROUTER)
        for socket in (self.controller, self.learner, self.shard):
            socket.bind("tcp://127.0.0.1:*")
        self.place = ShardAddress(host="", port=port_of(self.shard))
        welcome = make_welcome(
            environment="search",
            learner_port=port_of(self.learner),
            max_prompt_tokens=100_000,
            heartbeat_seconds=heartbeat_seconds,
            step_timeout=30.0,
            session="this",
        )
        self.actor = Actor(
            self.context,
            self.controller.get(zmq.LAST_ENDPOINT).decode(),
            welcome,
            Environments(self.environment),
            load_prompter(policy),
            ask_again_seconds=ask_again_seconds,
        )

    async def heard(self, socket: zmq.asyncio.Socket, kind: type) -> Message:
        """The next message of that kind."""
        async with asyncio.timeout(20):
            while True:
                self.peer, message, _ = await self.reader.receive(socket)
                if isinstance(message, Heartbeat) and kind is not Heartbeat:
                    await self.say(socket, HeartbeatAck(session="this"))
                if isinstance(message, kind):
                    return message

    async def named_for(self, places: list[ShardAddress], there: ShardAddress | None) -> None:
        """Tell the actor that its controller has the shards `places`.

        It gets a name for which it asks `there` for its turns.
        """
        while choose_shard(self.actor.name, places) != there:
            self.actor.name += b"x"  # it is asked by the name alone
        await self.say(self.controller, HeartbeatAck(session="this", shards=places))

    async def start_playing(self) -> asyncio.Task:
        """Have the actor play one episode, for which it has asked then."""
        playing = asyncio.create_task(self.actor.run(1))
        await self.heard(self.controller, Credit)
        return playing

    async def end_job(self, playing: asyncio.Task) -> None:
        """Tell the actor that the job is over, and wait until it has ended."""
        await self.say(self.controller, Shutdown(reason="over"))
        await asyncio.wait_for(playing, 10)

    async def say(self, socket: zmq.asyncio.Socket, message: Message) -> None:
        await socket.send_multipart([self.peer, encode(message)])


def port_of(socket: zmq.asyncio.Socket) -> int:
    """Return the port at which a socket is bound."""
    return urlsplit(socket.get(zmq.LAST_ENDPOINT).decode()).port


@pytest.fixture
async def bench(request: pytest.FixtureRequest, small_policy: Path):
    """Bench whose actor asks again after so many seconds; a test may be given another number."""
    made = Bench(
        small_policy, heartbeat_seconds=0.05, ask_again_seconds=getattr(request, "param", 0.2)
    )
    yield made
    made.context.destroy(linger=0)


@pytest.mark.slow
async def test_a_turn_and_an_episode_that_are_lost_on_their_way_are_sent_again(
    bench: Bench,
) -> None:
    playing = await bench.start_playing()
    await bench.say(bench.controller, make_lease(KEY))
    first, second = [await bench.heard(bench.controller, TurnRequest) for _ in range(2)]
    assert first == second
    assert (await bench.heard(bench.controller, Heartbeat)).playing == [(KEY, 0)]
    await bench.say(bench.controller, RESULT)
    delivered = [await bench.heard(bench.learner, Trajectory) for _ in range(2)]
    assert delivered[0].key == delivered[1].key == KEY
    await bench.say(bench.learner, Ack(keys=[KEY]))
    assert (await bench.heard(bench.controller, EpisodeEnded)).key == KEY
    assert (await bench.heard(bench.controller, Heartbeat)).playing == []
    await bench.end_job(playing)


# Several times before the controller is missed.
@pytest.mark.slow
@pytest.mark.parametrize("bench", [0.05], indirect=True, ids=["often"])
async def test_an_episode_that_nobody_acknowledges_is_said_with_where_it_was_sent(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    playing = await bench.start_playing()
    await bench.say(bench.controller, make_lease(KEY))
    await bench.heard(bench.controller, TurnRequest)
    await bench.say(bench.controller, RESULT)
    for _ in range(WARN_EVERY_TRIES + 1):
        await bench.heard(bench.learner, Trajectory)
    await bench.say(bench.learner, Ack(keys=[KEY]))
    await bench.end_job(playing)
    said = next(
        record.getMessage()
        for record in caplog.records
        if "from the learner" in record.getMessage()
    )
    assert KEY.id in said and "tcp://127.0.0.1:" in said and "learner.port" in said


@pytest.mark.slow
async def test_actor_reports_an_episode_that_the_learner_refuses_and_plays_on(
    bench: Bench,
) -> None:
    """A refused episode is delivered as dropped, with its reason, and the actor plays on."""
    playing = await bench.start_playing()
    await bench.say(bench.controller, make_lease(KEY))
    await bench.heard(bench.controller, TurnRequest)
    await bench.say(bench.controller, RESULT)
    assert (await bench.heard(bench.learner, Trajectory)).drop_reason is None
    await bench.say(bench.learner, Refused(key=KEY, why="tokens that do not exist"))
    notice = await bench.heard(bench.learner, Trajectory)
    assert (notice.key, notice.drop_reason, notice.turns) == (KEY, DropReason.ENGINE_ERROR, [])
    assert notice.detail == "the learner refuses it: tokens that do not exist"
    await bench.say(bench.learner, Ack(keys=[KEY]))
    assert (await bench.heard(bench.controller, EpisodeEnded)).key == KEY
    await bench.heard(bench.controller, Credit)
    await bench.end_job(playing)


@pytest.mark.slow
async def test_actor_whose_lease_lapses_in_a_step_asks_for_another_at_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step may take minutes, and the end of the run, or its last evaluation, waits for actors."""
    stepping = threading.Event()
    over = threading.Event()

    def step(*_) -> None:
        stepping.set()
        over.wait()

    environment = make_environment("search")
    monkeypatch.setattr(type(environment), "parse", step)
    playing = await bench.start_playing()
    await bench.say(bench.controller, make_lease(KEY))
    await bench.heard(bench.controller, TurnRequest)
    await bench.say(bench.controller, RESULT)
    await asyncio.to_thread(stepping.wait)
    await bench.say(bench.controller, Revoked(leases=[(KEY, 1), (EpisodeKey(7, 0), 0), (KEY, 0)]))
    await bench.heard(bench.controller, Credit)
    assert (await bench.heard(bench.controller, Heartbeat)).playing == []
    await bench.say(bench.controller, make_lease(EpisodeKey(1, 0)))
    assert (await bench.heard(bench.controller, TurnRequest)).key == EpisodeKey(1, 0)
    over.set()
    await bench.end_job(playing)


@pytest.mark.slow
async def test_an_actor_that_is_moved_asks_the_shard_for_the_turn_that_it_waits_for(
    bench: Bench,
) -> None:
    playing = await bench.start_playing()
    await bench.say(bench.controller, make_lease(KEY))
    request = await bench.heard(bench.controller, TurnRequest)
    actor = bench.peer
    await bench.named_for([bench.place], bench.place)
    assert await bench.heard(bench.shard, TurnRequest) == request
    shard_peer = bench.peer
    await bench.say(bench.shard, RESULT)
    await bench.heard(bench.learner, Trajectory)
    await bench.say(bench.learner, Ack(keys=[KEY]))
    for socket in (bench.controller, bench.shard):
        assert (await bench.heard(socket, EpisodeEnded)).key == KEY
    assert shard_peer == bench.actor.name
    bench.peer = actor
    await bench.end_job(playing)


@pytest.mark.slow
async def test_actor_whose_shard_is_gone_asks_the_controller(
    bench: Bench,
) -> None:
    """An actor whose shard is gone asks the controller and hears the shard no more."""
    playing = await bench.start_playing()
    actor = bench.peer
    await bench.named_for([bench.place], bench.place)
    await bench.say(bench.controller, make_lease(KEY))
    request = await bench.heard(bench.shard, TurnRequest)
    bench.peer = actor
    await bench.say(bench.controller, HeartbeatAck(session="this", shards=[]))
    assert await bench.heard(bench.controller, TurnRequest) == request
    late = make_turn_result(make_turn_request(KEY), rejected=[EMPTY_RESPONSE])
    await bench.say(bench.shard, late)
    for _ in range(2):  # the actor's loops have had time to hear it
        await bench.heard(bench.controller, Heartbeat)
    await bench.say(bench.controller, RESULT)
    assert (await bench.heard(bench.learner, Trajectory)).turns[0].rejected == []
    playing.cancel()
    await asyncio.wait({playing})


@pytest.mark.parametrize("end", ["the job", "the actor", "the controller", "the task"])
async def test_an_actor_that_ends_closes_the_episodes_that_it_plays(
    bench: Bench, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever ends it, what its episodes hold open is closed first."""
    closed = threading.Event()
    start = bench.environment.start

    def start_watched(*arguments):
        episode = start(*arguments)
        episode.close = closed.set
        return episode

    monkeypatch.setattr(bench.environment, "start", start_watched)
    playing = await bench.start_playing()
    await bench.say(bench.controller, make_lease(KEY))
    await bench.heard(bench.controller, TurnRequest)
    assert not closed.is_set()
    match end:
        case "the job":
            await bench.say(bench.controller, Shutdown(reason="over"))
        case "the actor":
            bench.actor.stop()
        case "the controller":
            await bench.say(bench.controller, HeartbeatAck(session="another"))
        case "the task":
            playing.cancel()
    async with asyncio.timeout(10):
        await asyncio.gather(playing, return_exceptions=True)
    assert closed.is_set()


@pytest.mark.slow
async def test_an_actor_whose_controller_is_silent_says_so_and_ends(bench: Bench) -> None:
    with pytest.raises(ControllerLost, match="has not answered"):
        await asyncio.wait_for(bench.actor.run(1), 20)


async def test_an_actor_that_another_controller_answers_ends(bench: Bench) -> None:
    playing = asyncio.create_task(bench.actor.run(1))
    await bench.heard(bench.controller, Heartbeat)
    await bench.say(bench.controller, HeartbeatAck(session="another"))
    with pytest.raises(ControllerLost, match="another controller"):
        await asyncio.wait_for(playing, 20)
