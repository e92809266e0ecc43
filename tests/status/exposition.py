"""A strict reader of Prometheus' text exposition format 0.0.4: whatever is not plainly allowed raises."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

_NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\\\|\\"|\\n)*)"(,|$)')
_SAMPLE = re.compile(rf"({_NAME})(?:\{{(.*)\}})? (\S+)")
_NUMBER = re.compile(r"-?\d+(\.\d+)?([eE][+-]?\d+)?")
_KINDS = {"counter", "gauge", "histogram"}
_UNESCAPED = {r"\\": "\\", r"\"": '"', r"\n": "\n"}

Labels = tuple[tuple[str, str], ...]


@dataclass
class Family:
    """What HELP and TYPE say, and samples by their full name and labels, in order."""

    kind: str
    help: str
    samples: dict[tuple[str, Labels], float] = field(default_factory=dict)

    def value(self, **labels: str) -> float:
        ((_, value),) = [(k, v) for k, v in self.samples.items() if dict(k[1]) == labels]
        return value


def parse(text: str) -> dict[str, Family]:
    """The families of a document, by name; ValueError for anything else."""
    if not text.endswith("\n"):
        raise ValueError("the last line does not end")
    families: dict[str, Family] = {}
    current = help_ = ""
    for line in text[:-1].split("\n"):
        if match := re.fullmatch(rf"# HELP ({_NAME}) (.*)", line):
            current, help_ = match[1], _unescaped(match[2])
            if current in families or not help_:
                raise ValueError(f"{line}: told twice, or nothing said")
        elif match := re.fullmatch(rf"# TYPE ({_NAME}) (\w+)", line):
            if match[1] != current or current in families or match[2] not in _KINDS:
                raise ValueError(f"{line}: without its HELP, or no known type")
            families[current] = Family(match[2], help_)
        else:
            _enter(families, current, line)
    for name, family in families.items():
        _check(name, family)
    return families


def _enter(families: dict[str, Family], current: str, line: str) -> None:
    match = _SAMPLE.fullmatch(line)
    if match is None or current not in families:
        raise ValueError(f"{line}: no sample, or before its TYPE")
    suffixes = ("_bucket", "_sum", "_count") if families[current].kind == "histogram" else ("",)
    if match[1] not in {current + suffix for suffix in suffixes}:
        raise ValueError(f"{line}: of another family than {current}")
    key = (match[1], _labels(match[2] or "", line))
    if key in families[current].samples:
        raise ValueError(f"{line}: twice")
    families[current].samples[key] = _value(match[3])


def _labels(text: str, line: str) -> Labels:
    found, at = [], 0
    while at < len(text):
        match = _LABEL.match(text, at)
        if match is None or match[1].startswith("__"):
            raise ValueError(f"{line}: labels")
        found.append((match[1], _unescaped(match[2])))
        at = match.end()
    if len({name for name, _ in found}) != len(found) or text.endswith(","):
        raise ValueError(f"{line}: a label twice, or one that is missing")
    return tuple(found)


def _unescaped(text: str) -> str:
    return re.sub(r"\\[\\\"n]", lambda match: _UNESCAPED[match[0]], text)


def _value(text: str) -> float:
    if text in ("+Inf", "-Inf", "NaN"):
        return {"+Inf": math.inf, "-Inf": -math.inf, "NaN": math.nan}[text]
    if not _NUMBER.fullmatch(text):
        raise ValueError(f"{text} is no number")
    return float(text)


def _check(name: str, family: Family) -> None:
    if (family.kind == "counter") != name.endswith("_total"):
        raise ValueError(f"{name}: only counters end in _total")
    if family.kind == "counter" and min(family.samples.values(), default=0) < 0:
        raise ValueError(f"{name}: a counter below 0")
    if family.kind == "histogram":
        buckets = [(labels, value) for (of, labels), value in family.samples.items() if of == f"{name}_bucket"]
        limits = [_value(dict(labels)["le"]) for labels, _ in buckets]
        counts = [value for _, value in buckets]
        if limits != sorted(set(limits)) or limits[-1] != math.inf or counts != sorted(counts):
            raise ValueError(f"{name}: buckets must grow to +Inf")
        if family.samples[f"{name}_count", ()] != counts[-1] or (f"{name}_sum", ()) not in family.samples:
            raise ValueError(f"{name}: the last bucket is the count")
