"""Settings that cannot hold together, and values that nothing could work with."""

from __future__ import annotations

import math
from pathlib import Path
from urllib.parse import urlsplit

from config.configuration import Config
from config.engine import EngineSection
from config.evaluation import AS_TRAINING, MIN_TEMPERATURE
from config.ignored import check_used
from config.model import NAMED_MODELS, is_hub_id
from config.options import flatten_config
from config.refusals import guess
from config.section import ConfigError

OF_STARTED_ENGINES = ("count", "port", "devices", "sleep", "extra_args")
"""Settings that say nothing to engines that run already."""


def check_consistency(config: Config) -> None:
    """Raise ConfigError when two settings cannot hold together, or a number is infinite."""
    _check_finite(config)
    _check_engine(config)
    check_used(config.learner)
    _check_learner(config)
    _check_control(config)
    _check_evaluation(config)
    if config.dashboard.host not in ("127.0.0.1", "localhost") and not config.dashboard.token:
        raise ConfigError(
            f"dashboard.token: at {config.dashboard.host} others can ask for the dashboard; set "
            "a token, or leave dashboard.host"
        )
    if config.model.name == "tiny" and config.model.template_arguments:
        raise ConfigError(
            "model.template_arguments: the chat template of the tiny policy takes none; leave them "
            "out"
        )
    if not _is_model(config.model.name):
        raise ConfigError(_describe_missing_model(config.model.name))


def _check_finite(config: Config) -> None:
    for name, value in flatten_config(config).items():
        if value == math.inf:
            raise ConfigError(
                f"{name}: a number must be finite; for no limit, give one that is never reached"
            )


def _check_engine(config: Config) -> None:
    engine = config.engine
    if config.sampling.max_tokens >= engine.max_model_len:
        raise ConfigError(
            f"sampling.max_tokens: responses of {config.sampling.max_tokens} tokens leave no room "
            f"for a prompt in engine.max_model_len ({engine.max_model_len}); set the former to "
            f"{engine.max_model_len // 2} or less, or the latter to "
            f"{2 * config.sampling.max_tokens} or more"
        )
    for url in engine.urls:
        if not _is_url(url):
            raise ConfigError(
                f"engine.urls: {url!r} is no address of a server; write http://HOST:PORT"
            )
    if engine.urls:
        _check_given_engines(engine)
    if engine.sleep == "always" and config.cluster.shards > 1:
        raise ConfigError(
            "engine.sleep: engines of further shards do not sleep; leave it at auto, or set "
            "cluster.shards to 1"
        )
    if len(engine.devices) % engine.count:
        raise ConfigError(
            f"engine.devices: {len(engine.devices)} devices for {engine.count} engines "
            "(engine.count)"
        )


def _check_given_engines(engine: EngineSection) -> None:
    """Raise ConfigError for a setting of engines that are started here, where none is."""
    plain = EngineSection()
    for name in OF_STARTED_ENGINES:
        if getattr(engine, name) != getattr(plain, name):
            raise ConfigError(
                f"engine.{name}: it is for engines that are started here, and engine.urls gives "
                "others; leave one of the two out"
            )


def _check_learner(config: Config) -> None:
    learner = config.learner
    if learner.devices and len(learner.devices) != learner.ranks:
        raise ConfigError(
            f"learner.devices: {len(learner.devices)} devices for {learner.ranks} ranks "
            "(learner.ranks)"
        )
    if learner.publish_lag > learner.max_staleness:
        raise ConfigError(
            f"learner.publish_lag: weights that come {learner.publish_lag} updates late make data "
            f"older than learner.max_staleness ({learner.max_staleness}) allows; raise that, or "
            "lower this"
        )


def _check_control(config: Config) -> None:
    control = config.control
    if control.t2po.min_thinking > control.max_thinking:
        raise ConfigError(
            f"control.t2po.min_thinking ({control.t2po.min_thinking}) must not exceed "
            f"control.max_thinking ({control.max_thinking})"
        )
    if control.mode == "budget" and control.max_thinking >= config.sampling.max_tokens:
        raise ConfigError(
            "control.max_thinking: control.mode budget would cut thinking at "
            f"{control.max_thinking} tokens, which a response of "
            f"{config.sampling.max_tokens} (sampling.max_tokens) never comes to; give fewer, as "
            "many as most thoughts have"
        )
    if control.decide_in == "engine" and control.signal == "stream":
        raise ConfigError(
            "control.decide_in: an engine decides by our plugin in it, and control.signal stream "
            "does without; set decide_in to controller, or signal to auto"
        )
    if control.t2po.score == "code" and control.t2po.turn_mean == "geometric":
        raise ConfigError(
            "control.t2po.turn_mean: the score of control.t2po.score code is below 0 where the "
            "policy is uncertain, and has no geometric mean; set it to arithmetic"
        )


def _check_evaluation(config: Config) -> None:
    temperature = config.eval.temperature
    if temperature not in (AS_TRAINING, 0.0) and temperature < MIN_TEMPERATURE:
        raise ConfigError(
            f"eval.temperature: {temperature:g} is no temperature; give at least "
            f"{MIN_TEMPERATURE:g}, 0 for the likeliest token, or {AS_TRAINING:g} for that of "
            "sampling.temperature"
        )


def _is_model(name: str) -> bool:
    return name in NAMED_MODELS or Path(name).is_dir() or is_hub_id(name)


def _describe_missing_model(name: str) -> str:
    """Say that no model has that name; of a path, which one near it there is."""
    if "/" not in name:
        return (
            f"model.name: {name!r} is neither 'tiny' nor 'smollm2', a run, a directory, or a name "
            "of the hub; give the path of a Hugging Face model directory"
        )
    place = name.partition("@")[0]
    beside = [str(path) for path in Path(place).parent.glob("*") if path.is_dir()]
    return f"model.name: there is no run and no directory {place}{guess(place, beside)}"


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        port = parts.port  # raises ValueError for one that is no number
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and port != 0
