"""Settings of the controller, and of who may talk with it."""

from __future__ import annotations

from typing import Annotated

from config.section import Section, says


class ControllerSection(Section, frozen=True):
    """Addresses at which the controller and its shards listen."""

    host: Annotated[
        str,
        says("Address the controller and the learner listen on; 0.0.0.0 lets other machines join"),
    ] = "127.0.0.1"
    port: Annotated[
        int,
        says("Port for actors, the next shards have the next; 0: any free ones", ge=0, le=65535),
    ] = 0
    signals_port: Annotated[
        int,
        says(
            "Port for the engine's signals, the next shards have the next; 0: any free ones. "
            "Engines at engine.urls must be told it (docs/reference/engine.md)",
            ge=0,
            le=65535,
        ),
    ] = 0


class ClusterSection(Section, frozen=True):
    """Processes on other machines, and what starts them there."""

    shards: Annotated[
        int,
        says(
            "Processes that share turns, signals and engines between them "
            "(docs/guides/several-machines.md)",
            ge=1,
        ),
    ] = 1
    shard_hosts: Annotated[
        list[str],
        says(
            "Addresses of the machines of the shards after the first, which is here, and of "
            "their engines; empty: all are here"
        ),
    ] = []
    shard_launch: Annotated[
        list[str],
        says(
            "Command that starts a shard on its machine of cluster.shard_hosts: it runs the "
            "command after it there for shard {shard} (1, 2, ...), in this directory and with "
            "these variables (srun,--nodes=1,--ntasks=1,--relative={shard}). It needs "
            "run.weights_dir and security.keys"
        ),
    ] = []

    learner_launch: Annotated[
        list[str],
        says(
            "Command that starts the learner on another machine: it runs the command after it "
            "there, in this directory and with these variables "
            "(srun,--disable-status,--nodes=1,--ntasks=1,-w,NODE or ip,netns,exec,NAME). "
            "It then needs learner.host, run.weights_dir and security.keys. {machine} is the "
            "machine's number, after this one (0) and those of cluster.shard_hosts"
        ),
    ] = []
    learner_machines: Annotated[
        int,
        says(
            "Machines that share the learner's ranks, equally many on each, at learner.host the "
            "first; cluster.learner_launch starts them there, by {machine}",
            ge=1,
        ),
    ] = 1

    gpus: Annotated[
        int,
        says(
            "GPUs of each machine; 0: as many as this one shows. With it, --dry-run plans for "
            "machines that are not here",
            ge=0,
        ),
    ] = 0
    gpu_memory_gb: Annotated[
        float, says("Memory of each GPU, in GiB; 0: that of this machine's", ge=0)
    ] = 0.0
    learner_gpus: Annotated[
        int,
        says(
            "GPUs of the machine that the learner has to itself; 0: it is on the first one, or "
            "has cluster.gpus. cluster.learner_launch starts it there, or `run.py slurm` or `ray`",
            ge=0,
        ),
    ] = 0


class ActorSection(Section, frozen=True):
    """How many actors there are, and how long they may take."""

    count: Annotated[int, says("Actor processes", ge=0)] = 64
    episodes_per_actor: Annotated[int, says("Episodes that an actor plays at once", ge=1)] = 1
    step_timeout: Annotated[float, says("Seconds an environment's step may take", gt=0)] = 30.0
    episode_seconds: Annotated[
        float,
        says(
            "Longest time for an episode; then another actor is given it. Sooner where episodes "
            "are short",
            gt=0,
        ),
    ] = 1800.0
    heartbeat_seconds: Annotated[
        float,
        says(
            "Seconds between signs of life; silent for three of them, a connection is made anew, "
            "for five, an actor is lost",
            gt=0,
        ),
    ] = 2.0
    max_leases: Annotated[
        int, says("Times an episode is leased before it is dropped as actor_lost", ge=1)
    ] = 5


class SecuritySection(Section, frozen=True):
    """Keys of those who may connect."""

    keys: Annotated[
        str,
        says(
            "Directory that `run.py keys` made: connections are encrypted, and admit those who "
            "have a key. Other machines need it"
        ),
    ] = ""


class DashboardSection(Section, frozen=True):
    """Address of the live dashboard, and the secret of those who see it."""

    host: Annotated[
        str, says("Address it listens on; another one than this machine's own needs a token")
    ] = "127.0.0.1"
    port: Annotated[
        int,
        says(
            "Port of the live dashboard, and of /metrics for Prometheus; 0: any free one",
            ge=0,
            le=65535,
        ),
    ] = 0
    token: Annotated[
        str,
        says(
            "Secret of those who may see it: http://HOST:PORT/?token=TOKEN, or as a bearer token; "
            "empty: everybody may"
        ),
    ] = ""
