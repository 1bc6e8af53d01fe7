"""Settings of the learner: advantages, loss, optimizer, and where it runs."""

from __future__ import annotations

from typing import Annotated, Literal

from config.algorithm import AnyAlgorithm, GigpoAlgorithm
from config.loss import AnyLoss, TisLoss
from config.section import Section, says


class LearnerSection(Section, frozen=True):
    """How advantages and losses are computed, and where the learner runs."""

    algorithm: Annotated[AnyAlgorithm, says("Advantage estimator (learner/advantages/)")] = (
        GigpoAlgorithm()
    )
    loss: Annotated[
        AnyLoss, says("Loss of a token, with its off-policy correction (learner/losses/)")
    ] = TisLoss()
    groups_per_update: Annotated[int, says("P: groups an update", ge=1)] = 8
    group_size: Annotated[int, says("G: episodes of one task", ge=2)] = 8
    filter_groups: Annotated[
        bool,
        says(
            "Leave groups out whose returns are equal, and play others instead (DAPO); a run "
            "whose groups all are makes no update"
        ),
    ] = False
    max_staleness: Annotated[
        int,
        says(
            "S: no trained token is older than this many versions, and order_window more; 0 is "
            "synchronous",
            ge=0,
        ),
    ] = 1
    order_window: Annotated[
        int,
        says(
            "Versions that a group may grow older because groups that came later are trained on "
            "before it; 0: none are",
            ge=0,
        ),
    ] = 1
    publish_lag: Annotated[
        int,
        says(
            "Updates by which weights go out late, for studies. With max_staleness the same, "
            "every token is that old",
            ge=0,
        ),
    ] = 0
    learning_rate: Annotated[float, says("AdamW's step size", ge=0)] = 1e-6  # T2PO's paper
    lr_decay_fraction: Annotated[
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
    min_effective_sample_size: Annotated[
        float,
        says(
            "A batch whose effective sample size, as a share, is smaller is a sign of a "
            "collapse; 0: none is",
            ge=0,
            lt=1,
        ),
    ] = 0.3
    minibatches: Annotated[int, says("Optimizer steps an update", ge=1)] = 4
    resampling: Annotated[
        Literal["ignore", "weight"],
        says(
            "Correction for stalled turns that were sampled again: none, or importance weights, at "
            "most resampling_cap, that undo it"
        ),
    ] = "ignore"
    resampling_cap: Annotated[float, says("Largest weight of learner.resampling weight", gt=0)] = (
        2.0
    )
    truncated: Annotated[
        Literal["train", "mask", "penalize"],
        says(
            "Turns whose response the budget cut off: train on them as on others; mask their "
            "tokens, though their episodes count; or put them truncated_penalty below others"
        ),
    ] = "train"
    truncated_penalty: Annotated[
        float,
        says("Penalty on the advantage of such a turn, with learner.truncated penalize", gt=0),
    ] = 1.0
    loss_reduction: Annotated[
        Literal["token", "turn", "constant"],
        says(
            "Reduction of the loss: mean over the tokens of a mini-batch; mean of its turns' "
            "means; or the sum over turns times sampling.max_tokens"
        ),
    ] = "token"
    kl_coef: Annotated[
        float,
        says(
            "Weight of KL(policy || reference); the reference is the first policy, or see "
            "reference_every",
            ge=0,
        ),
    ] = 0.0
    reference_every: Annotated[
        int,
        says(
            "Updates between those at which the policy becomes the reference; 0: the first one "
            "stays",
            ge=0,
        ),
    ] = 0
    entropy_coef: Annotated[float, says("Weight of the entropy bonus", ge=0)] = 0.0
    lora_rank: Annotated[
        int,
        says(
            "Rank of adapters beside the layers' matrices, which alone are trained (needs the "
            "extra lora); 0: all weights are",
            ge=0,
        ),
    ] = 0
    lora_alpha: Annotated[
        float, says("LoRA: the adapters' product is scaled by this over their rank", gt=0)
    ] = 32.0
    precision: Annotated[
        Literal["float32", "bfloat16"],
        says(
            "Precision of the layers' products in training; weights, optimizer, language-model "
            "head and loss are float32 in any case"
        ),
    ] = "float32"
    gradient_checkpointing: Annotated[
        bool,
        says(
            "Keep no layer's activations, and compute them again for the gradient: less memory, "
            "a third more work"
        ),
    ] = False
    compile: Annotated[
        bool,
        says(
            "Compile the layers (torch.compile), which takes minutes once: for GPUs. It needs a "
            "C++ compiler, and on GPUs Triton"
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
            "GPU: the GPU of each rank, in their order, as its machine shows and counts them from "
            "0; empty: the first ones"
        ),
    ] = []
    fsync: Annotated[
        bool,
        says(
            "Write episodes to the disk before they are acknowledged: none is lost with the "
            "machine, either (docs/guides/operations.md)"
        ),
    ] = False
    log_gb: Annotated[
        float,
        says("GiB of episodes to keep; the newest of those in a checkpoint stay; 0: all do", ge=0),
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
        says("Updates between checkpoints that are kept forever, too; 0: none are", ge=0),
    ] = 0

    def largest_age(self) -> int:
        """The most versions that a trained token can be old (controller/admission.py proves it)."""
        if self.max_staleness == 0 or self.publish_lag:
            # In lock-step, or with ages that are asked for exactly, no group passes another.
            return self.max_staleness
        return self.max_staleness + self.order_window

    def window(self) -> int:
        """Groups that may be trained on before one that was admitted earlier."""
        return (self.largest_age() - self.max_staleness) * self.groups_per_update

    def slots(self) -> int:
        """Groups that may be admitted before the engines run weights that were trained on them."""
        return (self.max_staleness + 1) * self.groups_per_update
