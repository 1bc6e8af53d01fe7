"""Settings of a run as a whole."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from config.section import Section, says


class RunSection(Section, frozen=True):
    """How long a run goes on, and where it writes."""

    seed: Annotated[int, says("Seed of everything random", ge=0)] = 0
    max_updates: Annotated[int, says("Stop after this many updates of the policy", ge=0)] = 100
    max_tokens: Annotated[
        int,
        says("Stop once so many tokens were generated for training batches; 0: no limit", ge=0),
    ] = 0
    max_minutes: Annotated[
        float,
        says(
            "Stop training after this many minutes; set-up counts, and so does the time before "
            "a resume; 0: no limit",
            ge=0,
        ),
    ] = 0.0
    tracker: Annotated[
        Literal["none", "wandb", "trackio"],
        says("Tracker that each update's numbers are sent to, too (extras of these names)"),
    ] = "none"
    tracker_project: Annotated[str, says("Project at the tracker that the run is shown in")] = (
        "foray"
    )
    dir: Annotated[str, says("Directory that the run writes to; empty: runs/<date>-<time>")] = ""
    weights_dir: Annotated[
        str,
        says(
            "Directory where the engines find new weights; empty: memory (/dev/shm). With "
            "cluster.learner_launch it is on a disk that both machines see"
        ),
    ] = ""
    cache_dir: Annotated[
        str, says("Directory of built and warm-started policies; empty: ~/.cache/foray")
    ] = ""

    def max_seconds(self) -> float:
        """Seconds after which training stops; infinite without a limit."""
        return 60 * self.max_minutes or math.inf
