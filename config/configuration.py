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
from config.evaluation import (
    AS_TRAINING,
    ONLY_SET,
    Decoding,
    EvalSection,
    EvaluationPlan,
    plan_evaluation,
)
from config.learner import LearnerSection
from config.model import ModelSection, WarmStartSection
from config.run import RunSection
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

    def environment_settings(self, evaluation_set: str = ONLY_SET) -> dict[str, Any]:
        """Keyword arguments for the factory of `env.name`; a set may have others than training."""
        settings = dict(self.env.settings)
        if self.env.max_turns:
            settings["max_turns"] = self.env.max_turns
        if self.env.history >= 0:
            settings["history"] = self.env.history
        if evaluation_set != ONLY_SET:
            settings |= self.eval.sets[evaluation_set].settings
        return settings

    def own_settings_of_sets(self) -> dict[str, dict[str, Any]]:
        """Set -> keyword arguments for the factory of `env.name`, of sets with others."""
        return {
            name: self.environment_settings(name)
            for name, one in self.eval.sets.items()
            if one.settings
        }

    def evaluation_plan(self) -> EvaluationPlan:
        """The episodes of each evaluation."""
        return plan_evaluation(self.eval)

    def decoding(self, evaluation: bool) -> Decoding:
        """How responses are decoded in evaluations, or in training.

        Training samples from the policy's whole distribution, of which log-probs are trained on.
        """
        if not evaluation:
            return Decoding(self.sampling.temperature, top_k=0, top_p=1.0)
        temperature = self.eval.temperature
        if temperature == AS_TRAINING:
            temperature = self.sampling.temperature
        if temperature == 0:
            return Decoding(0.0, top_k=0, top_p=1.0)
        return Decoding(temperature, self.eval.top_k, self.eval.top_p)
