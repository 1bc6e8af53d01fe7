"""The controller's sockets: actors, learner, shards and supervisor.

Each is known by the messages it understands. Here is also what an actor that introduces itself is
told.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path

import zmq
import zmq.asyncio

from config import Job
from protocol.codec import FrameReader, Received, encode
from protocol.delivery import DeliveryClient, DeliveryServer
from protocol.messages import Message, Welcome
from protocol.prompting import load_prompter
from protocol.security import bind, load_keys

LEARNER = b"learner"
"""The name under which the learner connects."""

ANY_ADDRESS = "0.0.0.0"


class RouterSocket:
    """A ROUTER socket, and the reader of its frames."""

    def __init__(self, socket: zmq.asyncio.Socket, reader: FrameReader) -> None:
        self._socket = socket
        self._reader = reader

    async def receive(self) -> Received:
        """Wait for the next message; what is none is dropped."""
        return await self._reader.receive(self._socket)

    async def send(self, peer: bytes, message: Message) -> None:
        """Send a message; a ROUTER drops what is for a peer that is gone."""
        await self._socket.send_multipart([peer, encode(message)])

    def refuse(self, peer: bytes, reason: str) -> None:
        """Count a message that is dropped, and log the first one of this peer."""
        self._reader.refuse(peer, reason)

    def close(self, linger_ms: int) -> None:
        self._socket.close(linger=linger_ms)


@dataclass(frozen=True)
class Transport:
    """All sockets of the controller but those of its engines."""

    reader: FrameReader
    actors: RouterSocket
    learner: DeliveryServer
    shards: RouterSocket
    stats: DeliveryClient

    async def tell_learner(self, message: Message) -> None:
        """Send a message, in its order, and again until the learner has it; never waits for it."""
        await self.learner.send(LEARNER, message)

    async def close(self) -> None:
        self.shards.close(linger_ms=0)
        self.actors.close(linger_ms=1000)
        self.learner.close(1.0)
        await self.stats.close(0.2)


def open_transport(job: Job, context: zmq.asyncio.Context) -> Transport:
    """Bind and connect the sockets of a job's controller."""
    keys = load_keys(job.config.security.keys)
    heartbeat_seconds = job.config.actor.heartbeat_seconds
    endpoints = job.endpoints
    reader = FrameReader()
    actors = context.socket(zmq.ROUTER)
    bind(actors, endpoints.actors, keys, "actors", heartbeat_seconds)
    learner = DeliveryServer(context, endpoints.learner, [LEARNER], keys, heartbeat_seconds, reader)
    stats = DeliveryClient(
        context, endpoints.stats, b"controller", b"supervisor", keys, heartbeat_seconds, reader
    )
    shards = context.socket(zmq.ROUTER)
    if endpoints.shards:
        bind(shards, endpoints.shards, keys, "run", heartbeat_seconds)
    return Transport(
        reader, RouterSocket(actors, reader), learner, RouterSocket(shards, reader), stats
    )


def build_welcome(job: Job) -> Welcome:
    """Collect all that an actor needs to know to play episodes of the job, wherever it is."""
    config = job.config
    learner_host = config.learner.host
    if learner_host == ANY_ADDRESS:
        learner_host = ""  # where the controller is
    model_dir = Path(job.model_dir)
    return Welcome(
        environment=config.env.name,
        environment_settings=config.environment_settings(),
        tokenizer_json=(model_dir / "tokenizer.json").read_bytes(),
        chat=load_prompter(model_dir, config.model.chat_options()).chat,
        learner_host=learner_host,
        learner_port=int(job.endpoints.trajectories.rsplit(":", 1)[1]),
        max_prompt_tokens=config.engine.max_model_len - 1,
        heartbeat_seconds=config.actor.heartbeat_seconds,
        step_timeout=config.actor.step_timeout,
        session=secrets.token_hex(8),
        anchor_texts=config.learner.algorithm.needs_anchor_texts,
        settings_by_set=config.own_settings_of_sets(),
    )
