"""Every setting: its type, its bounds, its default, and what it does.

A setting is named `section.name`, in a TOML file (`[section]`, `name = value`) and on the command
line (`--section.name VALUE`). The most used have a short name too (config/options.py).

One file holds the settings of one component. config/resolve.py makes a Config of defaults, files
and the command line. Nothing here imports anything heavy, so that `--help` answers at once.
"""

from config.algorithm import (
    Algorithm,
    AnyAlgorithm,
    GaeAlgorithm,
    GigpoAlgorithm,
    GrpoAlgorithm,
    ReinforcePlusPlusAlgorithm,
    ReinforcePlusPlusBaselineAlgorithm,
    RlooAlgorithm,
)
from config.configuration import Config
from config.control import ControlSection, T2poSection
from config.controller import (
    ActorSection,
    ClusterSection,
    ControllerSection,
    DashboardSection,
    SecuritySection,
)
from config.engine import EngineSection, SamplingSection
from config.environment import EnvSection
from config.evaluation import Decoding, EvalSection, EvalSetSection, EvaluationPlan
from config.job import Devices, Endpoints, EngineDevice, Job
from config.learner import LearnerSection
from config.loss import (
    AnyLoss,
    CispoLoss,
    ClippedLoss,
    DecoupledLoss,
    GspoLoss,
    Loss,
    MisLoss,
    PpoLoss,
    ReinforceLoss,
    TisLoss,
    VtraceLoss,
)
from config.model import ModelSection, TinySection, WarmStartSection
from config.run import RunSection
from config.section import ConfigError, Section

__all__ = [
    "ActorSection",
    "Algorithm",
    "AnyAlgorithm",
    "AnyLoss",
    "CispoLoss",
    "ClippedLoss",
    "ClusterSection",
    "Config",
    "ConfigError",
    "ControlSection",
    "ControllerSection",
    "DashboardSection",
    "Decoding",
    "DecoupledLoss",
    "Devices",
    "Endpoints",
    "EngineDevice",
    "EngineSection",
    "EnvSection",
    "EvalSection",
    "EvalSetSection",
    "EvaluationPlan",
    "GaeAlgorithm",
    "GigpoAlgorithm",
    "GrpoAlgorithm",
    "GspoLoss",
    "Job",
    "LearnerSection",
    "Loss",
    "MisLoss",
    "ModelSection",
    "PpoLoss",
    "ReinforceLoss",
    "ReinforcePlusPlusAlgorithm",
    "ReinforcePlusPlusBaselineAlgorithm",
    "RlooAlgorithm",
    "RunSection",
    "SamplingSection",
    "Section",
    "SecuritySection",
    "T2poSection",
    "TinySection",
    "TisLoss",
    "VtraceLoss",
    "WarmStartSection",
]
