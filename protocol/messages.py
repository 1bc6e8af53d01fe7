"""Every message that one process sends to another.

All are msgspec Structs: positional (`array_like`) and tagged, so that a frame is small and says
what it is. Arrays are raw little-endian bytes, with the element type in the field's comment
(`protocol.arrays` packs and unpacks them). Who sends what:

    actor       -> controller   Hello, Credit, TurnRequest, EpisodeEnded, Heartbeat
    controller  -> actor        Welcome, HeartbeatAck, Lease, TurnResult, TurnFailed, Revoked
    controller  -> actor        Shutdown
    actor       -> shard        TurnRequest, EpisodeEnded
    shard       -> actor        TurnResult, TurnFailed
    actor       -> learner      Trajectory
    learner     -> actor        Ack, Refused
    learner     -> controller   LearnerReady, WeightsPublished, Evaluate, GroupsDropped, Shutdown
    learner     -> controller   SleepEngines, TasksPlayed
    controller  -> learner      WeightsApplied, Trajectory (an episode that no actor could finish)
    controller  -> learner      EnginesAsleep
    shard       -> controller   ShardState
    controller  -> shard        LoadWeights, Revoked
    engine      -> its controller or shard   SignalFrame
    controller or shard -> engine            ForceTokens
    learner, controller      -> supervisor   Stats

Between learner, controller and supervisor each is sent inside a Numbered (protocol/frames.py),
which a Confirmed answers.
"""

from __future__ import annotations

from enum import StrEnum
from math import nan
from pathlib import Path

import msgspec
import numpy as np

from protocol.chat_format import ChatFormat

SCHEMA_VERSION = 10


class Message(msgspec.Struct, array_like=True, tag=True, frozen=True, kw_only=True):
    """Base of every message."""


class DropReason(StrEnum):
    """Why an episode was not trained on."""

    ENV_ERROR = "env_error"
    ENGINE_ERROR = "engine_error"
    STALE = "stale"
    CANCELED = "canceled"
    ACTOR_LOST = "actor_lost"
    # the returns of its group are all equal, and learner.filter_groups leaves such groups out
    UNINFORMATIVE = "uninformative"


FAILURES = (DropReason.ENV_ERROR, DropReason.ENGINE_ERROR, DropReason.ACTOR_LOST)
"""Reasons that somebody has to look into."""


class StopReason(StrEnum):
    """Why a turn's generation ended."""

    END = "end"  # the policy ended the turn (end-of-sequence token)
    LENGTH = "length"  # the response budget ran out
    REPETITION = "repetition"  # it repeated itself
    EARLY = "early"  # it was all but certain to be stalled


# --- episodes


class EpisodeKey(msgspec.Struct, array_like=True, frozen=True):
    """Identity of an episode: member `member` of group `group`.

    Evaluation episodes have groups of their own, numbered apart: (`evaluation`, group) is unique in
    a run.
    """

    group: int
    member: int
    evaluation: bool = False

    @property
    def id(self) -> str:
        """Short name of the episode: "t3.1", or "e3.1" in an evaluation."""
        kind = "e" if self.evaluation else "t"
        return f"{kind}{self.group}.{self.member}"


class Lease(Message, frozen=True):
    """Permission to play one episode; it lapses when its actor is silent for too long."""

    key: EpisodeKey
    lease_attempt: int  # which lease of the episode it is; 0: the first
    split: str
    task_index: int
    seed: int  # of everything random in the episode; the same for every lease
    permit: bytes = b""  # by which shards know that it was given (controller/leases.py)
    evaluation_set: str = ""  # whose environment is played; empty: the one that is trained in


class Hello(Message, frozen=True):
    """An actor introduces itself. Its ZeroMQ routing id is its name."""

    host: str
    pid: int
    schema: int = SCHEMA_VERSION


class Welcome(Message, frozen=True):
    """Tells an actor how to play: the environment, the tokenizer, where trajectories go."""

    environment: str
    environment_settings: dict
    tokenizer_json: bytes  # the contents of tokenizer.json
    chat: ChatFormat
    learner_host: str  # empty: the one that the controller was reached at
    learner_port: int
    max_prompt_tokens: int  # a longer prompt leaves no room for a response
    heartbeat_seconds: float
    step_timeout: float  # seconds an environment's step may take
    session: str  # of this controller
    anchor_texts: bool  # anchors are texts, since similar ones are compared; else digests
    # of evaluation sets whose environment has other settings
    settings_by_set: dict[str, dict] = {}


class Credit(Message, frozen=True):
    """Tells that the actor can take `episodes` more episodes."""

    episodes: int


class Heartbeat(Message, frozen=True):
    """Tells that the actor lives."""

    loop_lag: float = 0.0  # seconds, worst since the last heartbeat
    asking: int = 0  # episodes that it could take now
    playing: list[tuple[EpisodeKey, int]] = []  # leases (episode, lease_attempt) that it has


class ShardAddress(msgspec.Struct, array_like=True, frozen=True):
    """Address at which a shard takes turns."""

    host: str  # empty: the one that the controller was reached at
    port: int


class HeartbeatAck(Message, frozen=True):
    """Tells that the controller lives, and which shards there are.

    It is the answer to a heartbeat, and sent to all actors when shards come or go.
    """

    session: str  # as in its welcome; another one is another run's, or this one's after a resume
    shards: list[ShardAddress] = []  # that take turns beside the controller


class Shutdown(Message, frozen=True):
    """Tells that no more work will come: finish nothing, leave.

    It is the learner's last word to the controller, once the last checkpoint is written.
    """

    reason: str


class Span(msgspec.Struct, array_like=True, frozen=True):
    """Tokens [start, stop) of a response, which came from weights `version`."""

    start: int
    stop: int
    version: int


class ControlEvent(msgspec.Struct, array_like=True, frozen=True):
    """One decision of the controller, with the numbers that led to it."""

    kind: str  # "intervene", "resample", or "keep": stalled, but the last sample that is allowed
    reason: str  # the name of the condition that held
    position: int  # token of the response at which it was decided; its length for "resample"
    value: float  # the measured quantity
    threshold: float  # what it was compared with


class Response(msgspec.Struct, array_like=True, frozen=True):
    """One sampled response of a turn: the kept one, or one that was rejected."""

    tokens: bytes  # int32 [T]
    # float32 [T], behaviour policy, at the sampling temperature (and in evaluations, which are not
    # trained on, of the tokens that eval.top_k and eval.top_p leave); NaN where the engine reported
    # none
    log_probs: bytes
    # uint8 [T]: 1 = chosen by the policy, 0 = forced by the controller or without a finite log-prob
    mask: bytes
    spans: list[Span]
    # float16 [T] M_t, NaN where no signal arrived; empty when the turn was not watched
    uncertainty: bytes
    # float32 [T, 3]: entropy in nats, confidence, top-1 log-prob; NaN and empty likewise
    signals: bytes
    events: list[ControlEvent]
    stop: StopReason
    score: float  # turn-level uncertainty (Phi); NaN if it could not be computed
    thinking: int  # tokens in the thinking span
    epsilon: float = nan  # threshold of the token-level rule that was in force; NaN where none was
    eta: float = nan  # threshold of the turn-level rule, likewise
    thought_start: int = 0  # position of the first token in the thinking span

    @property
    def length(self) -> int:
        """Tokens of the response: T."""
        return len(self.tokens) // 4

    def signal_table(self) -> np.ndarray:
        """Return `signals` as a read-only float32 [T, 3]; [0, 3] when the turn was not watched."""
        return np.frombuffer(self.signals, dtype="<f4").reshape(-1, 3)

    def forced(self) -> np.ndarray:
        """Return bool [T]: which tokens the controller chose.

        They are those with mask 0 from an intervention on. A token after it that merely has no
        log-prob cannot be told from them.
        """
        interventions = [event.position for event in self.events if event.kind == "intervene"]
        first = min(interventions, default=self.length)
        forced = np.frombuffer(self.mask, dtype=np.uint8) == 0
        forced[:first] = False
        return forced


class TurnRequest(Message, frozen=True):
    """Asks for the next turn of an episode."""

    key: EpisodeKey
    lease_attempt: int
    turn_index: int
    prompt: bytes  # int32 [L]
    permit: bytes = b""  # of the lease


class TurnResult(Message, frozen=True):
    """Answers with the kept response, and those that were sampled and rejected before it."""

    key: EpisodeKey
    lease_attempt: int
    turn_index: int
    kept: Response
    rejected: list[Response]


class TurnFailed(Message, frozen=True):
    """Answers that the turn cannot be had, and the episode is over, for this reason."""

    key: EpisodeKey
    lease_attempt: int
    turn_index: int
    reason: DropReason
    detail: str


class Turn(msgspec.Struct, array_like=True, frozen=True):
    """One turn of a finished episode."""

    prompt: bytes  # int32 [L]
    kept: Response
    rejected: list[Response]
    reward: float
    valid: bool
    # of what the agent was shown: a digest, equal exactly when that is; the text itself with
    # learner.algorithm.anchor_similarity
    anchor: str
    action: str


class Trajectory(Message, frozen=True):
    """A finished episode, or the notice that it was dropped.

    A dropped one has a `drop_reason`, and its `turns` may be cut short.
    """

    key: EpisodeKey
    lease_attempt: int
    task_index: int
    task_type: str
    task: str
    success: bool
    turns: list[Turn]
    scores: dict[str, float] = {}
    """Scores that the benchmark reports beside success."""
    drop_reason: DropReason | None = None
    detail: str = ""
    overflowed: bool = False  # it ended since its next prompt would not have fitted the context
    truncated: bool = False  # it ended since the environment cut it off: no turns left, say
    rewrites: int = 0  # turns whose prompt begins anew, as the chat template rewrote what was said


class Ack(Message, frozen=True):
    """Tells that the learner has these episodes in its log: the actor may forget them."""

    keys: list[EpisodeKey]


class Refused(Message, frozen=True):
    """Tells that the learner cannot take this episode, however often it is sent."""

    key: EpisodeKey
    why: str


class EpisodeEnded(Message, frozen=True):
    """Tells that the learner has acknowledged the episode: its lease is over."""

    key: EpisodeKey
    lease_attempt: int


# --- learner and controller


class LearnerReady(Message, frozen=True):
    """Tells that the learner is ready, and where admission starts.

    It starts at `next_group`, without the groups above that were consumed.
    """

    next_group: int
    received: list[EpisodeKey]  # members that are not played again
    updates_remaining: (
        int  # training groups for so many updates are admitted, dropped ones replaced
    )
    consumed_groups: list[int] = []  # groups from `next_group` on that were trained on, or dropped
    control_state: bytes = b""  # the controller's own state, from the checkpoint; empty: a new run
    tasks: dict[int, int] = {}  # group -> task of its members in `received`


class Transfer(msgspec.Struct, array_like=True, frozen=True):
    """The tensors that the learner sends over NCCL, in their order."""

    names: list[str]  # as in the checkpoint
    dtypes: list[str]  # torch's names: "bfloat16", "float32"
    shapes: list[list[int]]


class WeightsPublished(Message, frozen=True):
    """Announces new weights, and the groups that they were trained on."""

    version: int
    checksum: str  # of the file's contents; empty with `transfer`
    trained: list[int]  # groups
    last: bool = False  # no training follows: admit no more training groups
    # engine.weights nccl: what the learner sends from now on, once for each version
    transfer: Transfer | None = None


def weights_file(directory: Path, version: int) -> Path:
    """Return the safetensors file of published weights.

    No message says where it is, so that none can say it wrongly.
    """
    return directory / f"v{version}.safetensors"


class GroupsDropped(Message, frozen=True):
    """Tells that groups will never be trained on, as too few members are left.

    Their slots are free now.
    """

    groups: list[int]


class TaskOutcome(msgspec.Struct, array_like=True, frozen=True):
    """Outcome of a group's episodes, those that were dropped left out."""

    group: int
    task: int
    solved: int  # episodes
    failed: int


class TasksPlayed(Message, frozen=True):
    """Tells, for a curriculum, what came of groups that are trained on or were dropped."""

    outcomes: list[TaskOutcome]


class Evaluate(Message, frozen=True):
    """Asks to play the `episodes` episodes of an evaluation; 0: play no more of them.

    They come before new training groups, with the weights published last, and no others.
    """

    evaluation: int  # group number; members are 0 ... episodes-1 (config/evaluation.py)
    episodes: int


class SleepEngines(Message, frozen=True):
    """Asks that all engines give up the memory of their GPU, or take it back.

    Turns stand still meanwhile, and go on afterwards.
    """

    asleep: bool


class EnginesAsleep(Message, frozen=True):
    """Answers that the engines are as the learner has asked."""

    asleep: bool


class WeightsApplied(Message, frozen=True):
    """Tells that every engine runs `version` now."""

    version: int
    seconds: float  # for which generation stood still
    consumed_groups: list[int] = []  # groups from `next_group` on that were trained on, or dropped
    control_state: bytes = b""  # the controller's own state, for the learner's checkpoint


# --- controller and shards


class ShardState(Message, frozen=True):
    """Tells that a shard lives, and its state.

    It is sent after each heartbeat, and when the shard's engines have new weights.
    """

    shard: int
    version: int  # of the weights that its healthy engines run; -1: none of this run's yet
    seconds: float  # for which generation stood still at the last update
    engines: list[tuple[str, str, int]]  # address, health, turns
    gauges: dict[str, float]
    last: bool = False  # it ends


class LoadWeights(Message, frozen=True):
    """Asks a shard to have its engines run the newest weights."""

    version: int
    checksum: str


class Revoked(Message, frozen=True):
    """Tells that leases are no longer in force.

    There are no further turns for them, and an actor that plays one breaks off.
    """

    leases: list[tuple[EpisodeKey, int]]  # (episode, lease_attempt)


# --- engine and controller


class SignalFrame(Message, frozen=True):
    """Signals of all watched turns at one engine step; row i belongs to turn_ids[i]."""

    step: int
    turn_ids: list[str]
    position: bytes  # int32 [R]: index in the response of the token about to be sampled
    entropy: bytes  # float32 [R], nats, of the distribution sampled from (after temperature)
    confidence: bytes  # float32 [R]: -mean log-prob of the top j tokens
    top_log_prob: bytes  # float32 [R]: log-prob of the most likely token
    forced: bytes  # int32 [R]: the token forced at this position, or -1
    previous: bytes  # int32 [R]: the token at position - 1 of the response; -1 at position 0


class ForceTokens(Message, frozen=True):
    """Asks the engine to force `tokens`, one after another, from its next step on.

    Nothing happens when the turn has finished, or when its response already ends the thinking span
    by itself: when it contains one of the spellings `unless` of a tag, or has begun one.
    """

    turn_id: str
    tokens: list[int]
    unless: tuple[tuple[int, ...], ...] = ()


# --- measurement


class Stats(Message, frozen=True):
    """Numbers from one process.

    `event` is "update", "evaluation", "phase", "gauge", "dropped" (at the end: what no update told
    of), "drops" (so far, by reason), "failures" (of each reason the first one's words) or "waiting"
    (for what: how many seconds).
    """

    source: str  # process name
    event: str
    values: dict[str, float | str | None]
