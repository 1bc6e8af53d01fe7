"""A run's numbers for Prometheus, through its own client library.

Names are by its conventions, with HELP and TYPE.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from telemetry.metrics_schema import METRICS, TOTAL_SUFFIX, find_metric, split_set
from telemetry.sinks.metrics_file import Record

Family = CounterMetricFamily | GaugeMetricFamily

UNITS = {
    "s": "seconds",
    "bytes": "bytes",
    "tokens/s": "tokens_per_second",
    "share": "ratio",
    "nats": "nats",
}
"""Unit of a metric -> what its name ends with."""
EVALUATION_PREFIX = "evaluation_"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def exposition(gauges: Mapping[str, float | None], update: Record, evaluation: Record) -> bytes:
    """The page: what the controller knows now, and the last update's and evaluation's numbers.

    Names of an evaluation's begin with evaluation_.
    """
    registry = CollectorRegistry()
    registry.register(_Snapshot(gauges, update, evaluation))
    return generate_latest(registry)


class _Snapshot:
    """Numbers as a collector of the library."""

    def __init__(
        self, gauges: Mapping[str, float | None], update: Record, evaluation: Record
    ) -> None:
        self._gauges = gauges
        self._update = update
        self._evaluation = evaluation

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Family] = {}
        _add_numbers(families, self._gauges, live=True)
        _add_numbers(families, self._update)
        _add_numbers(families, self._evaluation, prefix=EVALUATION_PREFIX)
        yield from families.values()

    def describe(self) -> Iterator[Metric]:
        return iter(())  # names are those of the moment


def _add_numbers(
    families: dict[str, Family],
    values: Mapping[str, object],
    prefix: str = "",
    live: bool = False,
) -> None:
    """Add the documented numbers to their families; those that are there already count."""
    for name, value in values.items():
        if not isinstance(value, int | float) or isinstance(value, bool):
            continue
        found = family_of(prefix, name, live)
        if found is None:
            continue
        family, labels = found
        family = families.setdefault(family.name, family)
        if not any(sample.labels == labels for sample in family.samples):
            family.add_metric(list(labels.values()), float(value))


def family_of(prefix: str, name: str, live: bool) -> tuple[Family, dict[str, str]] | None:
    """The metric that a number belongs to, and its labels; None for one that is not documented.

    `live`: counts are since the process started; in a record those since the run started are
    NAME_total, and what came since the update before is left out. Counts of an evaluation are its
    own; what has been counted since the run started is in the update's record, too, and left out.
    """
    metric = find_metric(name)
    is_total = name.endswith(TOTAL_SUFFIX)
    if metric is None or (prefix and (name.startswith(prefix) or is_total)):
        return None
    is_count = is_total or (live and metric.aggregation == "total")
    if metric.aggregation == "total" and not is_count and not prefix:
        return None
    set_name, inner = split_set(name.removesuffix(TOTAL_SUFFIX))
    base, _, kind = inner.partition("/")
    labels = _labels_of(set_name, base, kind)
    full_name = f"foray_{prefix}{base}"
    unit = UNITS.get(metric.unit, "")
    if unit and unit not in base:
        full_name += f"_{unit}"
    for label in labels:
        full_name += f"_by_{label}"
    description = metric.description
    if set_name and not kind:
        description = METRICS[base].description
    if kind and base in METRICS:
        description = METRICS[base].description
    elif kind and base == "score":
        description = "Mean over the episodes of what the environment reports"
    elif kind:
        description = "Tasks that one of k samples solves (unbiased estimate)"
    family = CounterMetricFamily if is_count else GaugeMetricFamily
    return family(full_name, description, labels=list(labels)), labels


def _labels_of(set_name: str, base: str, kind: str) -> dict[str, str]:
    """The labels of a number of an evaluation set ("": none) whose name is `base`/`kind`."""
    labels = {}
    if set_name:
        labels["set"] = set_name
    if base == "pass_at":
        labels["k"] = kind
    elif re.fullmatch(r"age\d+", kind):
        labels["age"] = kind.removeprefix("age")
    elif kind:
        labels["kind"] = kind
    return labels
