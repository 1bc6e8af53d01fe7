"""The job that a process of a run is given: the settings, and where the others are."""

from __future__ import annotations

from pathlib import Path

import msgspec

from config.configuration import Config
from config.section import ConfigError, Section


class Endpoints(Section, frozen=True):
    """Addresses at which the processes of one job find each other.

    All are ZeroMQ addresses, but for `engines`, `dashboard` and `weights`.
    """

    actors: str
    """The controller binds it: actors and fleets connect."""
    learner: str
    """The controller binds it: the learner connects."""
    signals: list[str]
    """Each shard binds its own, the controller the first: its engines' plugins connect."""
    trajectories: str
    """The learner binds it: actors connect."""
    stats: str
    """The supervisor binds it: everyone pushes measurements."""
    dashboard: str
    """http://host:port, where the controller serves it."""
    engines: list[str]
    """http://host:port of each vLLM server."""
    weights: str = ""
    """tcp://host:port, where the learner meets the engines' workers for NCCL."""
    shards: str = ""
    """The controller binds it: the other shards connect."""
    turns: list[str] = []
    """Each shard but the controller binds its own: actors connect."""

    def shard_of(self, engine: int) -> int:
        """The shard that has the engine of that number: they are dealt out in turn."""
        return engine % len(self.signals)

    def engines_of(self, shard: int) -> list[str]:
        """Addresses of the engines of a shard."""
        return [url for number, url in enumerate(self.engines) if self.shard_of(number) == shard]


class EngineDevice(Section, frozen=True):
    """The GPUs of an engine, and how much of their memory it takes."""

    gpus: list[int]
    """By their numbers among those that its machine shows."""
    memory_fraction: float
    """Share of the memory of each."""
    kv_cache_bytes: int = 0
    """Bytes for keys and values on each; 0: what the share leaves."""


class Devices(Section, frozen=True):
    """The GPUs of a run's processes; empty where it computes on CPUs."""

    engines: list[EngineDevice] = []
    """Those of each engine that the run starts."""
    learner: list[int] = []
    """The GPU of each rank of the learner, by its number among those that its machine shows."""
    sequences: int = 0
    """Turns that an engine generates at once; 0: as engine.max_sequences says."""
    sleeps: bool = False
    """True if engines give up their memory while an update is computed."""


class Job(Section, frozen=True):
    """All that a process of a run needs to know."""

    config: Config
    endpoints: Endpoints
    run_dir: str
    model_dir: str
    """The policy before this run, as a Hugging Face directory, with its tokenizer."""
    weights_dir: str
    """Directory of published weights, in memory where possible."""
    devices: Devices = Devices()
    resume: bool = False
    schema: int = 0
    """Version of the messages in its log (protocol/messages.py)."""
    engine_key: str = ""
    """Key that the engines ask for; empty: none."""
    permit_key: str = ""
    """Key that controller and shards share (controller/leases.py)."""
    run_id: str = ""
    """Name that engines tell runs apart by; a resume keeps it (engine/plugin/auth.py)."""

    @staticmethod
    def load(path: Path) -> Job:
        """Read the job that `supervisor.job.save_job` wrote.

        ConfigError if another version of this project did.
        """
        try:
            return msgspec.json.decode(path.read_bytes(), type=Job)
        except msgspec.MsgspecError as error:
            raise ConfigError(
                f"{path} was written by another version of this project: {error}"
            ) from None
