"""What asks for a person: what is wrong, which reason code it has, what helps, and which command."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from qsm_edge.errors import REASONS
from qsm_edge.status.facts import Facts, Row
from qsm_edge.status.health import Health
from qsm_edge.status.remedies import REMEDIES
from qsm_edge.status.words import NAME_DIGITS

PARTS = {
    "watcher": "The watched folders",
    "reader": "The reader of studies",
    "worker": "The reconstruction",
    "purge": "The clearing up",
    "listener": "The network door",
    "ledger": "The ledger",
    "disk": "The disk",
}
#: What a destination's answer means, where the reason code of a refusal does not say it.
_NOT_REACHED = (
    "results wait here and are sent again by themselves; look whether the destination runs and can be reached"
)
_TURNED_DOWN = (
    "ask who looks after the destination; `qsm-edge queue list` names the jobs, `queue retry` has them sent again"
)
#: What nobody can mend any more, or has decided to leave, does not ask for ever.
RECENT_S = 3 * 86400.0


@dataclass(frozen=True)
class Item:
    """One matter. level: `poor` (nothing works until it is mended) or `review`; command: words after `qsm-edge`; fades:
    whether it asks no more once it is older than `RECENT_S`."""

    level: str
    title: str
    means: str
    helps: str
    code: str = ""
    detail: str = ""
    since_s: float | None = None
    name: str = ""
    command: str = ""
    fades: bool = False


def items(facts: Facts, health: Health) -> tuple[list[Item], list[Item]]:
    """What asks now, the most urgent first, and what asked earlier. What is held does neither: it may come by itself."""
    of_studies = sorted((*_of_jobs(facts), *_of_findings(facts)), key=lambda item: -(item.since_s or 0.0))
    every = [*_of_health(health), *_of_deliveries(facts), *of_studies]
    old = [item for item in every if item.fades and facts.now_s - (item.since_s or 0.0) > RECENT_S]
    return [item for item in every if item not in old], old


def beyond(detail: str, means: str) -> str:
    """What a detail says that the meaning of its reason code does not say already."""
    if means.startswith(detail):
        return ""
    return detail.removeprefix(means).lstrip(";:., ")


def _of_health(health: Health) -> Iterator[Item]:
    for problem in health.problems:
        part = PARTS.get(problem.part, problem.part[:1].upper() + problem.part[1:])
        yield Item(
            "poor",
            f"{part}: {REASONS[problem.code]}",
            "",
            REMEDIES[problem.code],
            problem.code,
            problem.detail,
        )


def _of_deliveries(facts: Facts) -> Iterator[Item]:
    for name, rows in facts.destinations.items():
        refused = [row for row in rows if row["state"] == "refused"]
        if refused:
            yield _delivery(name, refused, "refused", _TURNED_DOWN)
        failing = [row for row in rows if row["state"] == "pending" and row["outcome"]]
        if failing:
            yield _delivery(name, failing, "could not be sent", _NOT_REACHED)


def _delivery(name: str, rows: list[Row], what: str, helps: str) -> Item:
    files = sum(row["files"] for row in rows)
    details = sorted({row["detail"] for row in rows if row["detail"]})
    codes = [detail for detail in details if detail in REASONS]
    return Item(
        "review",
        f"Destination {name}: {files} {'file' if files == 1 else 'files'} {what}",
        REASONS[codes[0]] if codes else "",
        REMEDIES[codes[0]] if codes else helps,
        codes[0] if codes else "",
        "; ".join(detail for detail in details if detail not in codes)[:300],
        min(row["changed_s"] for row in rows),
    )


def _of_jobs(facts: Facts) -> Iterator[Item]:
    for job in facts.failed:
        title = "A reconstruction failed" if job["state"] == "failed" else "An acquisition could not be reconstructed"
        command = f"queue retry {job['job'][:NAME_DIGITS]}"
        yield _coded(job, title, job["changed_s"], job["job"], command)


def _of_findings(facts: Facts) -> Iterator[Item]:
    for finding in facts.refused:
        yield _coded(finding, "Images cannot be used", finding["since_s"], finding["study"], "")


def _coded(row: Row, title: str, since_s: float, name: str, command: str) -> Item:
    code, detail = row["code"], row["text"]
    means = REASONS.get(code, "")
    helps, told = REMEDIES.get(code, ""), beyond(detail, means)
    return Item("review", title, means, helps, code, told, since_s, name, command, fades=True)
