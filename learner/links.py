"""The learner's connections to actors, controller, supervisor and engines."""

from __future__ import annotations

from dataclasses import dataclass

import zmq
import zmq.asyncio

from config import Job
from learner.publish import WeightSender
from protocol.codec import FrameReader
from protocol.delivery import DeliveryClient
from protocol.security import bind, load_keys


@dataclass(frozen=True)
class LearnerLinks:
    """The learner's connections."""

    trajectories: zmq.asyncio.Socket  # ROUTER, to which actors connect
    controller: DeliveryClient
    stats: DeliveryClient
    reader: FrameReader
    sender: WeightSender | None  # sends weights to engines, if they are not written to files


def open_links(job: Job, context: zmq.asyncio.Context, reader: FrameReader) -> LearnerLinks:
    """Bind the socket of actors, and connect to controller and supervisor."""
    keys = load_keys(job.config.security.keys)
    heartbeat_s = job.config.actor.heartbeat_seconds
    endpoints = job.endpoints
    trajectories = context.socket(zmq.ROUTER)
    bind(trajectories, endpoints.trajectories, keys, "actors", heartbeat_s)
    return LearnerLinks(
        trajectories,
        DeliveryClient(
            context, endpoints.learner, b"learner", b"controller", keys, heartbeat_s, reader
        ),
        DeliveryClient(
            context, endpoints.stats, b"learner", b"supervisor", keys, heartbeat_s, reader
        ),
        reader,
        _open_sender(job),
    )


def _open_sender(job: Job) -> WeightSender | None:
    """Return what sends weights over NCCL; None if they are written to files."""
    if job.config.engine.weights == "file":
        return None
    from engine.nccl_sender import WeightSender  # vLLM, which takes seconds, and is not everywhere

    return WeightSender(job.endpoints.weights, len(job.endpoints.engines))
