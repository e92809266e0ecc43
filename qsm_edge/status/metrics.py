"""The service's figures in Prometheus' text exposition format, version 0.0.4.

Counters count since the service began; what the spool holds are gauges. Units are in the names: seconds and bytes.
Source: the format's specification, https://prometheus.io/docs/instrumenting/exposition_formats/.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from qsm_edge import __version__
from qsm_edge.status.board import BUCKETS_S, Count, Seen
from qsm_edge.status.facts import Facts
from qsm_edge.status.health import Health

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
JOB_STATES = ("ready", "working", "done", "refused", "failed", "superseded", "purged")
VERDICTS = ("good", "review", "poor")
OUTCOMES = ("stored", "committed", "refused", "failed")


@dataclass(frozen=True)
class Sample:
    """One line: what is appended to the family's name, the labels, the value."""

    value: float
    labels: tuple[tuple[str, str], ...] = ()
    suffix: str = ""


@dataclass(frozen=True)
class Family:
    """One metric: `kind` is counter, gauge or histogram."""

    name: str
    kind: str
    help: str
    samples: tuple[Sample, ...]


def text_of(families: Iterable[Family]) -> str:
    """The document."""
    lines = []
    for family in families:
        lines.append(f"# HELP {family.name} {_escaped(family.help)}")
        lines.append(f"# TYPE {family.name} {family.kind}")
        for sample in family.samples:
            told = ",".join(f'{name}="{_escaped(value, quoted=True)}"' for name, value in sample.labels)
            lines.append(f"{family.name}{sample.suffix}{f'{{{told}}}' if told else ''} {_number(sample.value)}")
    return "\n".join(lines) + "\n"


def families(facts: Facts, seen: Seen, health: Health, memory: Mapping[str, int]) -> list[Family]:
    """All that is told. memory: bytes in use, by process (`service`, `reconstructions`), as far as that is known."""
    free = health.free_bytes
    return [
        _one("info", "The version that runs.", 1, (("version", __version__),)),
        _one("healthy", "1 where /health answers 200.", float(health.is_well)),
        _many(
            "problems",
            "What /health finds wrong, by reason code and part of the service.",
            {(("code", p.code), ("part", p.part)): 1 for p in health.problems},
        ),
        _one("uptime_seconds", "Time since the service began.", health.uptime_s),
        _counted("instances_received_total", "Instances that a door took in.", seen, "received"),
        _counted("instances_refused_total", "Instances that a door did not take in, by reason code.", seen, "refused"),
        _many(
            "studies",
            "Studies that are arriving, and acquisitions held for missing images or refused by the reader.",
            {(("state", name),): facts.totals[name] for name in ("arriving", "held", "refused")},
        ),
        _many("jobs", "Jobs by state.", {(("state", state),): facts.jobs.get(state, 0) for state in JOB_STATES}),
        _many("results", "Jobs that are done, by their worst verdict.", _by_verdict(facts)),
        _counted("reconstructions_total", "Reconstructions that ended, by the state of their jobs.", seen, "ended"),
        _histogram(seen),
        _many(
            "last_reconstruction_seconds",
            "How long the last reconstruction took.",
            {} if seen.last_seconds is None else {(): seen.last_seconds},
        ),
        _many("deliveries", "Result files that a destination does not have: pending, or refused.", _due(facts)),
        _counted("delivery_tries_total", "Result files that were sent, by what came of it.", seen, "sent"),
        _many(
            "oldest_undelivered_seconds",
            "Age of the oldest result that a destination does not have; 0 for none.",
            {
                (("destination", name),): max(0.0, facts.now_s - facts.oldest_s.get(name, facts.now_s))
                for name in facts.destinations
            },
        ),
        _one("disk_free_bytes", "Room on the spool's disk.", free),
        _one("disk_floor_bytes", "The doors refuse below this.", health.floor_bytes),
        _many(
            "resident_memory_bytes",
            "Memory in use by the service itself and by its reconstructions.",
            {(("process", name),): value for name, value in memory.items()},
        ),
    ]


def _by_verdict(facts: Facts) -> Mapping[tuple[tuple[str, str], ...], float]:
    counts = dict.fromkeys(VERDICTS, 0)
    for told, number in facts.verdicts.items():
        counts[worst(told.split(","))] += number
    return {(("verdict", verdict),): number for verdict, number in counts.items()}


def worst(verdicts: Iterable[str]) -> str:
    """The worst of some verdicts; what is no verdict counts as `review`."""
    return max((one if one in VERDICTS else "review" for one in verdicts), key=VERDICTS.index, default="review")


def _due(facts: Facts) -> Mapping[tuple[tuple[str, str], ...], float]:
    counts = {(name, state): 0 for name in facts.destinations for state in ("pending", "refused")}
    for name, rows in facts.destinations.items():
        for row in rows:
            counts[name, row["state"]] += row["files"]
    return {(("destination", name), ("state", state)): number for (name, state), number in counts.items()}


def _histogram(seen: Seen) -> Family:
    limits = [*(f"{limit:g}" for limit in BUCKETS_S), "+Inf"]
    sums = itertools.accumulate(seen.buckets)
    samples = [Sample(n, (("le", limit),), "_bucket") for limit, n in zip(limits, sums, strict=True)]
    samples += [Sample(seen.seconds_sum, (), "_sum"), Sample(sum(seen.buckets), (), "_count")]
    help_ = "Time that the reconstructions took."
    return Family("qsm_edge_reconstruction_seconds", "histogram", help_, tuple(samples))


def _one(name: str, help_: str, value: float, labels: tuple[tuple[str, str], ...] = ()) -> Family:
    return _many(name, help_, {labels: value})


def _many(name: str, help_: str, values: Mapping[tuple[tuple[str, str], ...], float]) -> Family:
    return Family(f"qsm_edge_{name}", "gauge", help_, tuple(Sample(v, labels) for labels, v in values.items()))


def _counted(name: str, help_: str, seen: Seen, count: str) -> Family:
    found: list[tuple[Count, int]] = sorted(item for item in seen.counts.items() if item[0][0] == count)
    return Family(f"qsm_edge_{name}", "counter", help_, tuple(Sample(number, key[1]) for key, number in found))


def _escaped(text: str, *, quoted: bool = False) -> str:
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quoted else text


def _number(value: float) -> str:
    if math.isfinite(value):
        return str(int(value)) if value == int(value) else repr(float(value))
    return {math.inf: "+Inf", -math.inf: "-Inf"}.get(value, "NaN")
