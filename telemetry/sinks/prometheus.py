"""A run's numbers for Prometheus: names by its conventions, with HELP and TYPE, through its own
client library."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from telemetry.metrics_schema import METRICS, TOTAL_SUFFIX, find_metric
from telemetry.sinks.metrics_file import Record

UNITS = {
    "s": "seconds",
    "bytes": "bytes",
    "tokens/s": "tokens_per_second",
    "share": "ratio",
    "nats": "nats",
}
"""Unit of a field -> what its name ends with."""
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def exposition(gauges: Mapping[str, float | None], update: Record, evaluation: Record) -> bytes:
    """The page: what the controller knows now, the last update's numbers, and the last evaluation's
    (names begin with evaluation_)."""
    registry = CollectorRegistry()
    registry.register(_Snapshot(gauges, update, evaluation))
    return generate_latest(registry)


class _Snapshot:
    """Numbers as a collector of the library."""

    def __init__(
        self, gauges: Mapping[str, float | None], update: Record, evaluation: Record
    ) -> None:
        self._now = gauges
        self._update = update
        self._evaluation = evaluation

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for prefix, values, live in (
            ("", self._now, True),
            ("", self._update, False),
            ("evaluation_", self._evaluation, False),
        ):
            for name, value in values.items():
                if (
                    isinstance(value, int | float)
                    and not isinstance(value, bool)
                    and (found := family_of(prefix, name, live)) is not None
                ):
                    family, labels = found
                    known = families.setdefault(family.name, family)
                    if not any(
                        sample.labels == labels for sample in known.samples
                    ):  # what is live counts
                        known.add_metric(list(labels.values()), float(value))
        yield from families.values()

    def describe(self) -> Iterator[Metric]:
        return iter(())  # names are those of the moment


def family_of(prefix: str, name: str, live: bool) -> tuple[Metric, dict[str, str]] | None:
    """The metric that a number belongs to, and its labels; None for one that is not documented.

    `live`: counts are since the process started; in a record those since the run started are
    NAME_total, and what came since the update before is left out. Counts of an evaluation are its
    own; what has been counted since the run started is in the update's record, too, and left out.
    """
    field = find_metric(name)
    if field is None or (prefix and (name.startswith(prefix) or name.endswith(TOTAL_SUFFIX))):
        return None
    counts = name.endswith(TOTAL_SUFFIX) or (live and field.aggregation == "total")
    if field.aggregation == "total" and not counts and not prefix:
        return None
    base, slash, kind = name.removesuffix(TOTAL_SUFFIX).partition("/")
    unit = UNITS.get(field.unit, "")
    full = f"foray_{prefix}{base}" + (f"_{unit}" if unit and unit not in base else "")
    labels = {"age": kind[3:]} if re.fullmatch(r"age\d+", kind) else {"kind": kind} if slash else {}
    full += f"_by_{next(iter(labels))}" if labels else ""
    family = CounterMetricFamily if counts else GaugeMetricFamily
    of_all = (
        METRICS[base].description
        if base in METRICS
        else "Mean over the episodes of what the environment reports"
    )
    return family(full, of_all if slash else field.description, labels=list(labels)), labels
