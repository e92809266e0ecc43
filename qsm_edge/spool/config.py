"""site.toml -> frozen dataclasses. Every key is known and in its range, or the error names the file and the line."""

from __future__ import annotations

import dataclasses
import math
import re
import tomllib
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from qsm_edge.bounds import bounded
from qsm_edge.errors import UsageError
from qsm_edge.publish import SERIES

#: What a destination may be sent: the series and objects that `qsm-edge run` makes, by the names of its files.
KINDS = ("mask", "parametric_map", *SERIES)


def _choice(default: str, *names: str) -> Any:
    return field(default=default, metadata={"names": names})


@dataclass(frozen=True)
class SpoolSettings:
    """Where the spool is, when a study counts as quiet, and for how long things are kept."""

    folder: Path
    quiet_s: float = bounded(30.0, 0.0, 86400.0)
    max_instance_mb: int = bounded(1024, 1, 65536)
    min_free_mb: int = bounded(500, 0, 10_000_000)
    keep_done_days: float = bounded(30.0, 0.0, 36500.0)
    keep_held_days: float = bounded(14.0, 0.0, 36500.0)
    purge_below_free_mb: int = bounded(0, 0, 100_000_000)


@dataclass(frozen=True)
class Watch:
    """A folder that is looked through at any depth; a file that stays the same for `still_s` is taken in."""

    folder: Path
    still_s: float = bounded(10.0, 0.0, 86400.0)
    every_s: float = bounded(5.0, 0.1, 86400.0)
    originals: str = _choice("leave", "leave", "move")


@dataclass(frozen=True)
class Work:
    """How to reconstruct, with how much, and how often to try."""

    workers: int = bounded(1, 1, 64)
    memory_mb: int = bounded(16384, 256, 10_000_000)
    cpu_s: int = bounded(14400, 0, 10_000_000)
    wall_s: float = bounded(7200.0, 0.0, 10_000_000.0)
    attempts: int = bounded(2, 1, 100)
    retry_s: float = bounded(60.0, 0.0, 86400.0)
    recipe: str = "default"
    set: tuple[str, ...] = ()
    mask: str = _choice("auto", "auto", "network", "threshold")
    model: str = ""
    device: str = _choice("auto", "auto", "cpu", "cuda")
    maps: tuple[str, ...] = ()
    nifti: bool = False
    parametric_map: bool = False


@dataclass(frozen=True)
class Delivery:
    """The time between tries doubles from the first to the longest."""

    first_retry_s: float = bounded(30.0, 0.0, 86400.0)
    longest_retry_s: float = bounded(3600.0, 0.0, 604800.0)


@dataclass(frozen=True)
class Logs:
    """How events are written to standard error."""

    format: str = _choice("plain", "plain", "json")


@dataclass(frozen=True)
class Table:
    """A table of the file that another module understands: ``bind(kind, table)`` makes its settings of it."""

    values: Mapping[str, Any] = field(default_factory=dict)
    base: Path = Path()
    where: Callable[[str], str] = field(default=lambda key: "", compare=False, repr=False)


@dataclass(frozen=True)
class Destination:
    """Who gets results, and which: `peer` is the rest of the table, for the sender to understand."""

    name: str
    kinds: tuple[str, ...] = ("chi", "mask")
    peer: Table = field(default_factory=Table)


@dataclass(frozen=True)
class Site:
    """A whole configuration. `listen` and `status` are the tables of those names for others to understand, or None."""

    spool: SpoolSettings
    watch: tuple[Watch, ...] = ()
    work: Work = Work()
    delivery: Delivery = Delivery()
    log: Logs = Logs()
    destinations: tuple[Destination, ...] = ()
    listen: Table | None = None
    status: Table | None = None


@dataclass(frozen=True)
class _Text:
    """The file's text, to find the line of a key for a message."""

    name: str
    lines: tuple[str, ...]

    def at(self, table: str, number: int = 0, key: str = "") -> str:
        """``site.toml:12`` of a key in a table (the `number`-th of that name), or of the table's head."""
        seen, inside, head = -1, table == "", 0
        for line, text in enumerate(self.lines, 1):
            if match := re.match(r"\s*\[\[?\s*([\w.\"-]+)\s*\]", text):
                seen += match[1] == table
                inside = match[1] == table and seen == number
                head = line if inside else head
                if inside and not key:
                    return f"{self.name}:{line}"
            elif inside and (match := re.match(r"\s*[\"']?([\w-]+)[\"']?\s*[=.]", text)) and match[1] == key:
                return f"{self.name}:{line}"
        return f"{self.name}:{head or 1}"


Kind = TypeVar("Kind")

_TABLES: dict[str, type] = {"spool": SpoolSettings, "work": Work, "delivery": Delivery, "log": Logs}
_LISTS = ("watch", "destination")
_OTHERS = ("listen", "status")


def load(path: Path) -> Site:
    """Read and check a site's configuration; relative paths are relative to its folder.

    Raises
    ------
    UsageError
        bad_call where the file cannot be read, bad_value and unknown_name with the line where something in it is wrong.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        what = "the configuration cannot be read"
        raise UsageError("bad_call", what, where=str(path), got=error.strerror) from error
    try:
        text = content.decode("utf-8")
        whole = tomllib.loads(text)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UsageError("bad_value", "the configuration is not UTF-8", where=f"{path.name}:{line}") from None
    except tomllib.TOMLDecodeError as error:
        line = _line_of(str(error), text)
        raise UsageError("bad_value", "the configuration is not TOML", where=f"{path.name}:{line}", got=error) from None
    return _site(whole, _Text(path.name, tuple(text.splitlines())), path.absolute().parent)


def _line_of(message: str, text: str) -> int:
    match = re.search(r"at line (\d+)", message)
    return int(match[1]) if match else text.count("\n") + 1


def _site(whole: dict[str, Any], text: _Text, base: Path) -> Site:
    known = [*_TABLES, *_LISTS, *_OTHERS]
    for key, value in whole.items():
        if key not in known:
            where = text.at(key) if isinstance(value, dict | list) else text.at("", 0, key)
            raise UsageError("unknown_name", "no such table", where=where, got=key, wanted=", ".join(known))
    if "spool" not in whole:
        raise UsageError("bad_value", "the table [spool] with its folder is missing", where=f"{text.name}:1")

    def table(name: str, number: int, values: object) -> Table:
        if not isinstance(values, dict):
            wanted = f"[[{name}]]" if name in _LISTS else f"[{name}]"
            raise UsageError(
                "bad_value", f"{name} is no table", where=text.at(name) or text.at("", 0, name), wanted=wanted
            )
        return Table(values, base, lambda key: text.at(name, number, key))

    def tables(name: str) -> list[Table]:
        entries = whole.get(name, [])
        return [
            table(name, number, entry) for number, entry in enumerate(entries if isinstance(entries, list) else [0])
        ]

    one: dict[str, Any] = {name: bind(kind, table(name, 0, whole.get(name, {}))) for name, kind in _TABLES.items()}
    destinations = [_destination(entry) for entry in tables("destination")]
    watched = [bind(Watch, entry) for entry in tables("watch")]
    one |= {name: table(name, 0, whole[name]) for name in _OTHERS if name in whole}
    site = Site(**one, watch=tuple(watched), destinations=tuple(destinations))
    _check_together(site, text)
    return site


def _destination(table: Table) -> Destination:
    own = {key: value for key, value in table.values.items() if key in ("name", "kinds")}
    rest = {key: value for key, value in table.values.items() if key not in own}
    named = bind(Destination, dataclasses.replace(table, values=own))
    unknown = sorted(set(named.kinds) - set(KINDS))
    if unknown or not named.kinds:
        raise UsageError("bad_value", where=table.where("kinds"), got=", ".join(unknown), wanted=", ".join(KINDS))
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,40}", named.name):
        wanted = "1 to 40 letters, digits, and _.-"
        raise UsageError("bad_value", where=table.where("name"), got=named.name, wanted=wanted)
    return dataclasses.replace(named, peer=dataclasses.replace(table, values=rest))


def _check_together(site: Site, text: _Text) -> None:
    """What no single key can tell."""
    names = [destination.name for destination in site.destinations]
    for number, name in enumerate(names):
        if name in names[:number]:
            where = text.at("destination", number, "name")
            raise UsageError("bad_value", "two destinations have one name", where=where, got=name)
    spool = site.spool.folder.resolve()
    for number, watch in enumerate(site.watch):
        folder = watch.folder.resolve()
        if folder == spool or folder in spool.parents or spool in folder.parents:
            what = "a watched folder and the spool lie inside one another"
            raise UsageError("bad_value", what, where=text.at("watch", number, "folder"), got=watch.folder)


def bind(kind: type[Kind], table: Table) -> Kind:
    """Make a frozen dataclass of a table: its fields are the keys, their types, defaults and `metadata` the rules.

    metadata: `low` and `high` of a number, `names` of a choice. Raises UsageError bad_value, unknown_name with the line.
    """
    fields = {f.name: f for f in dataclasses.fields(kind) if f.init}  # type: ignore[arg-type]
    hints = typing.get_type_hints(kind)
    values: dict[str, Any] = {}
    for key, value in table.values.items():
        if key not in fields:
            raise UsageError("unknown_name", "no such key", where=table.where(key), got=key, wanted=", ".join(fields))
        values[key] = _checked(fields[key], hints[key], value, table, key)
    for key, one in fields.items():
        no_default = one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING
        if key not in values and no_default:
            raise UsageError("bad_value", "a key is missing", where=table.where(""), wanted=key)
    return kind(**values)


def _checked(one: dataclasses.Field[Any], hint: Any, value: Any, table: Table, key: str) -> Any:
    """The value in the type of its field; whole numbers may stand for floats, nothing else is converted."""
    choices = one.metadata.get("names", ())
    made, wanted = _typed(hint, value, table.base)
    if made is not None and choices and made not in choices:
        made = None
    if choices:
        wanted = ", ".join(choices)
    if "low" in one.metadata:
        low, high = one.metadata["low"], one.metadata["high"]
        wanted += f" from {low:g} to {high:g}"
        if made is not None and not low <= made <= high:
            made = None
    if made is None:
        raise UsageError(
            "bad_value", f"{key} has a wrong value", where=table.where(key), got=repr(value), wanted=wanted
        )
    return made


def _typed(hint: Any, value: Any, base: Path) -> tuple[Any, str]:
    """The value as `hint` asks, None where it is of another type; and what was wanted, in words."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        hint = next(part for part in typing.get_args(hint) if part is not types.NoneType)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Path:
        return (base / value if isinstance(value, str) and value and "\0" not in value else None), "a path"
    if hint is bool:
        return (value if isinstance(value, bool) else None), "true or false"
    if hint is int:
        return (value if type(value) is int else None), "a whole number"
    if hint is float:
        return (float(value) if type(value) in (int, float) and math.isfinite(value) else None), "a number"
    if hint is str:
        return (value if isinstance(value, str) else None), "a text"
    if origin in (tuple, Sequence, frozenset):
        parts = [_typed(arguments[0], item, base)[0] for item in value] if isinstance(value, list) else [None]
        return (None if None in parts else (frozenset if origin is frozenset else tuple)(parts)), "a list of texts"
    return value, "a value"
