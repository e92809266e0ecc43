"""What a person sees of the spool and may change in it, also while the service is at work: all of it in the ledger."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from qsm_edge.errors import InputRefused, UsageError
from qsm_edge.spool.folders import Spool

_SHORTEST_NAME = 6


def listing(spool: Spool) -> dict[str, Any]:
    """Studies that wait or were refused, jobs, and deliveries that are not done; names are hashes."""
    rows = spool.ledger.rows
    studies = rows(
        "SELECT study, arrivals, received_s, arrivals != looked AS awaits_quiet, "
        "(SELECT COUNT(*) FROM instances i WHERE i.study = s.study AND i.state = 'held') AS instances FROM studies s "
        "WHERE EXISTS (SELECT 1 FROM instances i WHERE i.study = s.study AND i.state = 'held') ORDER BY received_s"
    )
    findings = rows("SELECT study, state, code, text, files, since_s FROM findings ORDER BY study, number")
    jobs = rows(
        "SELECT job, study, state, code, text, verdict, attempts, interruptions, not_before_s, memory_bytes, created_s, "
        "changed_s, seconds FROM jobs WHERE state NOT IN ('purged', 'superseded') ORDER BY created_s, job"
    )
    deliveries = rows(
        "SELECT job, destination, state, outcome, detail, COUNT(*) AS files, MAX(attempts) AS attempts, "
        "MIN(not_before_s) AS not_before_s FROM deliveries WHERE state != 'cancelled' "
        "GROUP BY job, destination, state, outcome, detail ORDER BY MIN(changed_s), job"
    )
    return {
        "studies": [{**dict(row), "awaits_quiet": bool(row["awaits_quiet"])} for row in studies],
        "findings": [dict(row) for row in findings],
        "jobs": [dict(row) for row in jobs],
        "deliveries": [dict(row) for row in deliveries],
    }


def text_of(listed: Mapping[str, Any], now: float) -> str:
    """The same for a person."""
    lines = []
    found: dict[str, list[Mapping[str, Any]]] = {}
    for finding in listed["findings"]:
        found.setdefault(finding["study"], []).append(finding)
    for study in listed["studies"]:
        words = "arriving or not looked at yet" if study["awaits_quiet"] else "looked at"
        age = _ago(now - study["received_s"])
        lines.append(f"study  {study['study'][:12]}  {study['instances']} instances, the last {age}: {words}")
        lines += [
            f"         {f['state']} [{f['code']}] {f['text']} ({f['files']} files)"
            for f in found.get(study["study"], [])
        ]
    for job in listed["jobs"]:
        parts = [job["state"], job["verdict"], f"[{job['code']}] {job['text']}" if job["code"] else ""]
        parts += [f"{job['seconds']:.0f} s"] if job["seconds"] else []
        shown = " ".join(part for part in parts if part)
        lines.append(f"job    {job['job'][:12]}  of study {job['study'][:12]}: {shown}")
        for delivery in (one for one in listed["deliveries"] if one["job"] == job["job"]):
            last = " ".join(word for word in (delivery["outcome"], delivery["detail"]) if word)
            tries = f", {delivery['attempts']} tries, last {last}" if delivery["state"] != "done" and last else ""
            lines.append(f"         {delivery['destination']}: {delivery['files']} files {delivery['state']}{tries}")
    lines.append(f"{len(listed['studies'])} studies, {len(listed['jobs'])} jobs")
    return "".join(f"{line}\n" for line in lines)


def retry(spool: Spool, item: str) -> str:
    """Try again what did not come off; says what will happen. Raises UsageError where there is nothing to try again."""
    kind, name = _named(spool, item)
    now = time.time()
    with spool.ledger.transaction() as db:
        if kind == "study":
            db.execute("UPDATE studies SET hurry = 1 WHERE study = ?", (name,))
            return "the study will be looked at again"
        again = db.execute(
            "UPDATE jobs SET state = 'ready', code = '', text = '', attempts = 0, interruptions = 0, not_before_s = 0, "
            "changed_s = ? WHERE job = ? AND state IN ('ready', 'failed', 'refused')",
            (now, name),
        )
        if again.rowcount:
            return "the job will be reconstructed again"
        due = db.execute(
            "UPDATE deliveries SET state = 'pending', not_before_s = 0, changed_s = ? "
            "WHERE job = ? AND state IN ('pending', 'refused')",
            (now, name),
        )
        if due.rowcount:
            return f"{due.rowcount} files will be sent again"
    what = "there is nothing to try again: the job is done and delivered, or at work"
    raise UsageError("bad_call", what, got=name[:12])


def release(spool: Spool, item: str, *, force: bool = False) -> str:
    """Look at a study now, without waiting for quiet; or, with `force`, stop waiting for what it lacks.

    Raises
    ------
    InputRefused : without `force`, the finding of a study that was looked at and is not complete.
    UsageError : where there is no such study, or, with `force`, nothing in it waits.
    """
    kind, name = _named(spool, item)
    if kind != "study":
        raise UsageError("bad_call", "only a study can be released", got=f"the job {name[:12]}")
    with spool.ledger.transaction() as db:
        (row,) = db.execute("SELECT * FROM studies WHERE study = ?", (name,))
        held = list(db.execute("SELECT * FROM findings WHERE study = ? AND state = 'held' ORDER BY number", (name,)))
        if force:
            if not held:
                raise UsageError("bad_call", "nothing in this study waits for more images", got=name[:12])
            db.execute("UPDATE findings SET state = 'given_up' WHERE study = ? AND state = 'held'", (name,))
            return (
                f"given up: {', '.join(sorted({one['code'] for one in held}))}; the next image of the study reopens it"
            )
        if row["arrivals"] != row["looked"]:
            db.execute("UPDATE studies SET hurry = 1 WHERE study = ?", (name,))
            return "the study will be looked at now"
    if held:
        raise InputRefused(
            held[0]["code"], held[0]["text"], where=f"study {name[:12]}", wanted="the missing images, or --force"
        )
    raise UsageError("bad_call", "nothing in this study waits", got=name[:12])


def _named(spool: Spool, item: str) -> tuple[str, str]:
    """The study or job whose name begins with `item`."""
    if len(item) < _SHORTEST_NAME or not item.isalnum():
        raise UsageError("bad_call", "give six digits of a name or more", got=item)
    found = [("study", row["study"]) for row in spool.ledger.rows("SELECT study FROM studies")]
    found += [("job", row["job"]) for row in spool.ledger.rows("SELECT job FROM jobs WHERE state != 'purged'")]
    fitting = [one for one in found if one[1].startswith(item)]
    if len(fitting) != 1:
        what = "several names begin like this" if fitting else "no study or job has a name that begins like this"
        raise UsageError("unknown_name", what, got=item, wanted="see qsm-edge queue list")
    return fitting[0]


def _ago(seconds: float) -> str:
    for size, word in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {word} ago"
    return f"{max(seconds, 0):.0f} s ago"
