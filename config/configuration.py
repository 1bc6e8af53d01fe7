"""All settings of a run, by section."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from config.control import ControlSection
from config.controller import (
    ActorSection,
    ClusterSection,
    ControllerSection,
    DashboardSection,
    SecuritySection,
)
from config.engine import EngineSection, SamplingSection
from config.environment import EnvSection
from config.learner import LearnerSection
from config.model import ModelSection, WarmStartSection
from config.run import EvalSection, RunSection
from config.section import Section


class Config(Section, frozen=True):
    """All settings of a run."""

    run: RunSection = RunSection()
    env: EnvSection = EnvSection()
    model: ModelSection = ModelSection()
    warm_start: WarmStartSection = WarmStartSection()
    engine: EngineSection = EngineSection()
    sampling: SamplingSection = SamplingSection()
    control: ControlSection = ControlSection()
    learner: LearnerSection = LearnerSection()
    actor: ActorSection = ActorSection()
    controller: ControllerSection = ControllerSection()
    cluster: ClusterSection = ClusterSection()
    security: SecuritySection = SecuritySection()
    dashboard: DashboardSection = DashboardSection()
    eval: EvalSection = EvalSection()

    def cache_dir(self) -> Path:
        """Directory of built, converted and warm-started policies."""
        return Path(self.run.cache_dir or "~/.cache/foray").expanduser()

    def environment_settings(self) -> dict[str, Any]:
        """Keyword arguments for the factory of `env.name`."""
        settings = dict(self.env.settings)
        if self.env.max_turns:
            settings["max_turns"] = self.env.max_turns
        if self.env.history >= 0:
            settings["history"] = self.env.history
        return settings
