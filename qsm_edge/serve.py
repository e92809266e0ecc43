"""Layer 5: the service: doors, completeness, workers and delivery in one loop over one spool. See `qsm_edge.spool`.

The loop never computes and never waits for the network: studies are looked at and reconstructed in children, the
listener has its own threads, and so has each destination. All state is in the ledger; what is here may be lost at any
moment.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from qsm_edge import status
from qsm_edge.errors import QsmEdgeError, ResourceError, UsageError
from qsm_edge.spool import Log, Origin, Spool, child, complete, deliver, opened, purge, recover, watch, work
from qsm_edge.spool.config import Destination, Site, Table, bind
from qsm_edge.spool.folders import serving
from qsm_edge.spool.intake import intake
from qsm_edge.spool.log import silent

if TYPE_CHECKING:
    from qsm_edge import listen
    from qsm_edge.listen import Audit, Reports

T = TypeVar("T")

#: The loop looks for something to do this often.
TICK_S = 0.2
#: ... and so often while there is no room for it.
_FULL_TICK_S = 5.0
_PURGE_EVERY_S, _PURGE_SOON_S = 3600.0, 60.0
_LOOK_WALL_S, _LOOK_CPU_S = 900.0, 900


#: Something that is open as long as the service runs.
Door = Callable[[Spool], contextlib.AbstractContextManager[object]]


@dataclass(frozen=True)
class Parts:
    """What the service is made of; a test puts others in their place."""

    read: complete.Reader
    run: work.RunCommand
    senders: Mapping[str, deliver.Sender]
    listener: Door | None = None
    page: Door | None = None
    board: status.Board = field(default_factory=status.Board)


@dataclass
class _State:
    """What the loop remembers from one round to the next."""

    arrivals: dict[str, tuple[int, float]] = field(default_factory=dict)
    files: list[watch.Seen] = field(default_factory=list)
    looked_s: list[float] = field(default_factory=list)
    crashes: dict[tuple[str, int], tuple[int, float]] = field(default_factory=dict)
    working: list[work.Started] = field(default_factory=list)
    unentered: set[str] = field(default_factory=set)
    moving: list[int] = field(default_factory=list)
    purge_at_s: float = 0.0
    full: bool = False


def look_limits(site: Site) -> child.Limits:
    """Of a child that looks at a study."""
    return child.Limits(site.work.memory_mb * 1_000_000, _LOOK_CPU_S, _LOOK_WALL_S)


def run_limits(site: Site) -> child.Limits:
    """Of a child that reconstructs."""
    return child.Limits(site.work.memory_mb * 1_000_000, site.work.cpu_s, site.work.wall_s)


def default_parts(site: Site, log: Log) -> Parts:
    """The reader and the chain of this package, and listener and senders as the configuration asks for; checks all of it.

    Raises
    ------
    UsageError : with the file and line, where something in the configuration cannot work.
    """
    from qsm_edge.recipe import Recipe
    from qsm_edge.run import Options, check_mask_options

    recipe = Recipe.load(site.work.recipe, site.work.set)
    model = Path(site.work.model) if site.work.model else None
    if model is not None and not model.is_file():
        raise UsageError("bad_call", "there is no such file", where="[work] model", got=str(model))
    check_mask_options(recipe, Options(site.work.recipe, site.work.set, site.work.mask, model))
    read = complete.reader(look_limits(site), site.work.recipe, site.work.set)
    senders, listener, board = {}, None, status.Board()
    log = board.hearing(log)
    if site.destinations or site.listen is not None:
        from qsm_edge.listen import Reports

        reports = Reports()
        senders = {one.name: sender_of(one, reports if site.listen else None, log) for one in site.destinations}
        listener = None if site.listen is None else _listener_of(site, site.listen, reports, log)
    page = None if site.status is None else page_of(site, site.status, board, log)
    return Parts(read, work.run_command(site.work, run_limits(site)), senders, listener, page, board)


def page_of(site: Site, table: Table, board: status.Board, log: Log) -> Door:
    """The status page of a site. Raises UsageError where its table cannot be understood."""
    settings = _checked(bind(status.Settings, table), status.check, table)
    names = [one.name for one in site.destinations]

    @contextlib.contextmanager
    def door(spool: Spool) -> Iterator[object]:
        floor, days = site.spool.min_free_mb * 1_000_000, site.spool.keep_held_days
        with status.serve(
            settings, board, spool.root, destinations=names, floor_bytes=floor, keep_held_days=days
        ) as running:
            log("status_page", {"address": settings.address, "port": getattr(running, "port", settings.port)})
            yield running

    return door


def sender_of(destination: Destination, reports: Reports | None, log: Log) -> deliver.Sender:
    """The sender to one destination. Raises UsageError where its table cannot be understood."""
    from qsm_edge import send

    peer = _checked(bind(send.Destination, destination.peer), send.check, destination.peer)
    return lambda files: send.send(files, peer, _auditing(log), reports)


def _listener_of(site: Site, table: Table, reports: Reports, log: Log) -> Door:
    from qsm_edge import listen

    settings = _checked(bind(listen.Settings, table), listen.check, table)
    most = min(settings.maximum_instance_bytes, _max_bytes(site))
    settings = replace(settings, maximum_instance_bytes=most)

    def door(spool: Spool) -> contextlib.AbstractContextManager[object]:
        def store(part: Path, origin: listen.Origin) -> None:
            came = Origin("c-store", origin.calling_ae_title, origin.address)
            intake(spool, part, came, max_bytes=most, min_free_bytes=site.spool.min_free_mb * 1_000_000)

        return listen.serve(settings, spool.folder("incoming"), store, _auditing(log), reports)

    return door


def _auditing(log: Log) -> Callable[[Audit], None]:
    """The network's audit trail as events of ours."""

    def audit(line: Audit) -> None:
        facts = {f.name: getattr(line, f.name) for f in dataclasses.fields(line) if f.name not in ("event", "at")}
        log(line.event, {name: value for name, value in facts.items() if value})

    return audit


def _checked(settings: T, check: Callable[[T], None], table: Table) -> T:
    """Settings that `check` finds nothing wrong with; what it finds, with the line of the key that it names."""
    try:
        check(settings)
    except UsageError as error:
        place = f"{table.where(error.where.partition(',')[0])} {error.where}"
        raise UsageError(error.code, error.what, where=place, got=error.got, wanted=error.wanted) from None
    return settings


def serve(
    site: Site,
    parts: Parts,
    *,
    once: bool = False,
    stop: threading.Event | None = None,
    log: Log = silent,
    on_open: Callable[[Spool], None] | None = None,
) -> int:
    """Work until `stop` is set, or, `once`, until there is nothing left to do; returns the exit status.

    once : without the listener; watched files and studies are given their time to be still and quiet, every delivery
    that is due is tried once. 0: all done and delivered; 3: something is held, refused, failed or undelivered.
    on_open : called with the open spool when the service is ready.

    Raises
    ------
    UsageError : the spool cannot be used, or another service is at work on it. ResourceError : no room to start.
    """
    stopping, board = stop or threading.Event(), parts.board
    log = board.hearing(log)
    with _private(), serving(site.spool.folder), opened(site.spool.folder) as spool, contextlib.ExitStack() as stack:
        recover.recover(spool, max_bytes=_max_bytes(site), retry_s=site.work.retry_s, log=log)
        deliver.drop_unknown_destinations(spool, [d.name for d in site.destinations], log=log)
        if not once:
            if parts.listener is not None:
                listener = stack.enter_context(parts.listener(spool))
                board.watch("listener", lambda: bool(getattr(listener, "is_alive", True)))
            stack.enter_context(_delivering(site, spool, parts, log))
            if parts.page is not None:
                stack.enter_context(parts.page(spool))
        if on_open is not None:
            on_open(spool)
        log("serving", {"once": once, "destinations": len(site.destinations), "watched": len(site.watch)})
        state = _State(
            files=[{} for _ in site.watch], looked_s=[float("-inf")] * len(site.watch), moving=[0] * len(site.watch)
        )
        try:
            while not stopping.is_set():
                busy = _round(site, spool, parts, state, log, once=once)
                if once and not busy:
                    _deliver_all(site, spool, parts, log)
                    break
                stopping.wait(_FULL_TICK_S if state.full else TICK_S)
        finally:
            for started in state.working:  # each is stopped, whatever becomes of the others
                with contextlib.suppress(QsmEdgeError, OSError):  # what cannot be entered, the next start puts right
                    work.requeue(spool, started, log=log)
            with contextlib.suppress(QsmEdgeError, OSError):
                for job in sorted(state.unentered):
                    work.give_back(spool, job)
            log("stopped", {})
        return _status(spool) if once else 0


@contextlib.contextmanager
def _private() -> Iterator[None]:
    """Whatever is made meanwhile is for this user only."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def _round(site: Site, spool: Spool, parts: Parts, state: _State, log: Log, *, once: bool) -> bool:
    """Do what is due now; whether anything is under way or waits for its time."""
    before = state.full
    state.full = False
    for step in (_watch, _look, _finish, _start, _purge):
        try:
            with parts.board.at(step.__name__.strip("_")):
                step(site, spool, parts, state, log)
        except ResourceError as error:  # nothing is lost: the next round tries again
            state.full = True
            if not before:
                log("no_room", {"code": error.code, "step": step.__name__.strip("_")})
        except OSError as error:
            log("trouble", {"code": "internal", "step": step.__name__.strip("_"), "errno": error.errno or 0})
            state.full = True
    if state.full and once:
        return bool(state.working)
    return bool(state.working or any(state.moving) or complete.waiting(spool) or _can_start(spool))


def _can_start(spool: Spool) -> bool:
    return work.next_job(spool, 0, alone=True, now=time.time()) is not None


def _max_bytes(site: Site) -> int:
    return site.spool.max_instance_mb * 1_000_000


def _watch(site: Site, spool: Spool, parts: Parts, state: _State, log: Log) -> None:
    clock = time.monotonic()
    for number, watched in enumerate(site.watch):
        if clock - state.looked_s[number] < min(watched.every_s, max(watched.still_s, TICK_S)):
            continue
        state.looked_s[number] = clock
        state.moving[number] = 1  # where this raises, files are left
        bounds = (_max_bytes(site), site.spool.min_free_mb * 1_000_000)
        state.moving[number] = watch.scan(
            spool, watched, state.files[number], clock, max_bytes=bounds[0], min_free_bytes=bounds[1], log=log
        )
        parts.board.trouble(f"watched folder {number + 1}", "" if watched.folder.is_dir() else "watch_missing")


def _look(site: Site, spool: Spool, parts: Parts, state: _State, log: Log) -> None:
    due = complete.quiet(spool, state.arrivals, site.spool.quiet_s, time.monotonic())
    keys = {(study, arrivals) for study, (arrivals, _) in state.arrivals.items()}
    state.crashes = {key: told for key, told in state.crashes.items() if key in keys}
    for study in due:
        key = study, state.arrivals[study][0]
        tries, not_before_s = state.crashes.get(key, (0, 0.0))
        if time.monotonic() < not_before_s:
            continue
        parts.board.beat("look")  # each look has its time
        last = tries + 1 >= site.work.attempts
        if not complete.look(spool, study, parts.read, last_try=last, log=log):
            state.crashes[key] = tries + 1, time.monotonic() + site.work.retry_s * 2 ** min(tries, 16)


def _finish(site: Site, spool: Spool, parts: Parts, state: _State, log: Log) -> None:
    for job in sorted(state.unentered):
        work.give_back(spool, job)
        state.unentered.discard(job)
    for started in list(state.working):
        if not child.over(started.running):
            if not work.is_wanted(spool, started):
                child.stop(started.running)
            continue
        state.working.remove(started)
        state.unentered.add(started.job)
        work.finish(spool, started, site.work, site.destinations, log=log)
        state.unentered.discard(started.job)
    parts.board.children(started.running.process.pid for started in state.working)


def _start(site: Site, spool: Spool, parts: Parts, state: _State, log: Log) -> None:
    while len(state.working) < site.work.workers:
        free = site.work.memory_mb * 1_000_000 - sum(started.memory_bytes for started in state.working)
        found = work.next_job(spool, free, alone=not state.working, now=time.time())
        if found is None:
            return
        job = found[0]
        state.unentered.add(job)
        started = work.start(spool, job, parts.run, run_limits(site), log=log)
        state.unentered.discard(job)
        if started is None:
            return
        state.working.append(started)


def _purge(site: Site, spool: Spool, parts: Parts, state: _State, log: Log) -> None:
    clock = time.monotonic()
    if clock >= state.purge_at_s:
        state.purge_at_s = clock + (_PURGE_SOON_S if site.spool.purge_below_free_mb else _PURGE_EVERY_S)
        purge.purge(spool, site.spool, log=log)


def _deliver_all(site: Site, spool: Spool, parts: Parts, log: Log) -> None:
    """Try what is due at every destination, once."""
    now = time.time()
    for destination in site.destinations:
        sender = parts.senders[destination.name]
        with contextlib.suppress(ResourceError, OSError):  # the ledger has no room, or is not ours: at the next call
            while deliver.deliver(spool, destination.name, sender, site.delivery, now=now, log=log):
                pass


@contextlib.contextmanager
def _delivering(site: Site, spool: Spool, parts: Parts, log: Log) -> Iterator[None]:
    """A thread for each destination, so that one that is down holds up nobody."""
    ended = threading.Event()

    def work_for(name: str) -> None:
        while not ended.is_set():
            try:
                found = deliver.deliver(spool, name, parts.senders[name], site.delivery, log=log)
            except Exception as error:  # a thread that ends would leave its destination without results
                log("trouble", {"code": getattr(error, "code", "internal"), "step": "deliver", "destination": name})
                found = False
            if not found:
                ended.wait(5 * TICK_S)

    threads = [threading.Thread(target=work_for, args=(d.name,), daemon=True) for d in site.destinations]
    for destination, thread in zip(site.destinations, threads, strict=True):
        thread.start()
        parts.board.watch(f"sender to {destination.name}", thread.is_alive)
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join(timeout=30.0)  # what it is sending is sent again: the ledger knows of the try


def _status(spool: Spool) -> int:
    """The exit status of `once`: whether anything waits for a person, for images, or for a destination."""
    left = spool.ledger.rows(
        "SELECT 1 FROM findings WHERE state IN ('held', 'refused') UNION ALL "
        "SELECT 1 FROM jobs WHERE state IN ('ready', 'working', 'refused', 'failed') UNION ALL "
        "SELECT 1 FROM deliveries WHERE state IN ('pending', 'refused') LIMIT 1"
    )
    return 3 if left else 0
