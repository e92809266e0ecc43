"""Layer 4: which method with which options, out of TOML. Every name and value is checked against the function itself."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from qsm_edge.errors import UsageError
from qsm_edge.stages import STAGES, accepts, options_of

#: 'auto' takes the network when a model is installed and the classical mask otherwise.
_AUTO = {"mask": "auto"}

#: Beyond these, numbers overflow in float32 or are lost in it; lengths end at the size of a head.
_SMALLEST, _LARGEST, _LARGEST_MM = 1e-9, 1e9, 200.0

#: Options whose 0 switches something off. Any other whose default is above 0 divides, scales or counts: 0 is refused.
ZERO_MEANS_OFF = frozenset(
    {
        "tolerance",  # all iterations are done
        "margin_mm",  # no padding but what the transform adds
        "depth_limit_mm",  # the surface is treated like the inside
        "evenness",  # steps inside a strong source cost nothing
        "backgrounds",  # the background is removed but once
        "coarse_mm",  # the grid of the images
        "length_mm",  # no smoothness within tissue
        "inside_ppm",  # no sources inside, as in PDF as published
        "doubtful_share",  # the same
        "least_ml",  # no void is too small, or too shallow, or explains too little
        "least_depth_mm",
        "least_explained",
        "least_explained_deep",
        "smooth_mm",
        "closing_mm",
        "bridge_mm",
        "nonlinear_fit.iterations",  # the linear fit
    }
)


@dataclass(frozen=True)
class Choice:
    """A stage's method, all its options (defaults included) and the recipe's reason for it."""

    method: str
    options: Mapping[str, Any]
    why: str = ""


@dataclass(frozen=True)
class Recipe:
    """A resolved recipe: a choice for every stage of `stages.STAGES`."""

    name: str
    about: str
    choices: Mapping[str, Choice]

    @staticmethod
    def names() -> tuple[str, ...]:
        """The recipes that come with the package."""
        folder = resources.files("qsm_edge") / "recipes"
        return tuple(
            sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))
        )

    @staticmethod
    def load(name_or_path: str | Path = "default", overrides: Sequence[str] = ()) -> Recipe:
        """A recipe by name or TOML file, changed by ``stage=method`` and ``stage.option=value`` in their order.

        Raises UsageError unknown_name or bad_value; the message lists what is known.
        """
        text, where = _read(name_or_path)
        try:
            table = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise UsageError("bad_value", "the recipe is not valid TOML", where=where, got=error) from None
        return Recipe._resolve(table, overrides, where)

    @staticmethod
    def resolved(name: str, table: Mapping[str, Mapping[str, Any]]) -> Recipe:
        """The recipe that `as_dict` told of, as a provenance keeps it; nothing is looked up or checked again."""
        parts = {stage: dict(options) for stage, options in table.items()}
        return Recipe(name, "", {stage: Choice(options.pop("method"), options) for stage, options in parts.items()})

    @staticmethod
    def _resolve(table: dict[str, Any], overrides: Sequence[str], where: str) -> Recipe:
        known = {*STAGES, "name", "about"}
        for key in table:
            if key not in known:
                raise UsageError("unknown_name", "no such stage", where=where, got=key, wanted=", ".join(STAGES))
        sections: dict[str, dict[str, Any]] = {}
        for stage in STAGES:
            section = table.get(stage, {})
            if not isinstance(section, dict):
                raise UsageError(
                    "bad_value", "a stage is a table", where=f"{where} [{stage}]", got=type(section).__name__
                )
            sections[stage] = dict(section)
        for text in overrides:
            _override(sections, text)
        choices = {stage: _choice(stage, section, where) for stage, section in sections.items()}
        return Recipe(str(table.get("name", Path(where).stem)), str(table.get("about", "")), choices)

    def with_mask(self, method: str, model: bool = False) -> Recipe:
        """This recipe with a call's mask method: 'auto' and the recipe's own method keep the recipe's options.

        `model`: whether the call names a mask network. Raises UsageError unknown_name for a method, bad_call for a network
        that would not be used.
        """
        choice = self.choices["mask"]
        if method not in (_AUTO["mask"], choice.method):
            choice = _choice("mask", {"method": method, "why": "asked for by the call"}, "--mask")
        function = STAGES["mask"].get(choice.method)
        if model and function is not None and not accepts(function, "model"):
            what = "a mask network was given that would not be used"
            raise UsageError("bad_call", what, got=f"the mask method {choice.method}", wanted="network, or no model")
        return replace(self, choices={**self.choices, "mask": choice})

    def as_dict(self) -> dict[str, Any]:
        """Stage -> method and options: all that moves a voxel, and nothing else."""
        return {stage: {"method": c.method, **c.options} for stage, c in self.choices.items()}

    @property
    def digest(self) -> str:
        """SHA-256 (hex) over the resolved methods and options; names and reasons do not count."""
        return hashlib.sha256(json.dumps(self.as_dict(), sort_keys=True).encode()).hexdigest()

    def to_toml(self) -> str:
        """The resolved recipe as TOML that `load` takes back."""
        lines = [f"name = {_toml(self.name)}", f"about = {_toml(self.about)}"]
        for stage, choice in self.choices.items():
            lines += ["", f"[{stage}]", f"method = {_toml(choice.method)}"]
            lines += [f"{key} = {_toml(value)}" for key, value in choice.options.items()]
            lines += [f"why = {_toml(choice.why)}"] if choice.why else []
        return "\n".join(lines) + "\n"


def _read(name_or_path: str | Path) -> tuple[str, str]:
    name = str(name_or_path)
    if name in Recipe.names():
        return (resources.files("qsm_edge") / "recipes" / f"{name}.toml").read_text(encoding="utf-8"), name
    path = Path(name)
    if path.suffix == ".toml" and path.is_file():
        return path.read_text(encoding="utf-8"), name
    raise UsageError("unknown_name", "no such recipe", got=name, wanted=", ".join(Recipe.names()) + ", or a .toml file")


def _override(sections: dict[str, dict[str, Any]], text: str) -> None:
    target, equals, value = text.partition("=")
    stage, dot, option = target.strip().partition(".")
    if not equals or stage not in sections or (dot and not option):
        wanted = "stage=method or stage.option=value; stages: " + ", ".join(STAGES)
        raise UsageError(
            "unknown_name" if equals else "bad_call", "cannot set that", where="--set", got=text, wanted=wanted
        )
    if dot and option != "method":
        sections[stage][option] = _value(value.strip())
    else:  # another method has other options: those of the recipe's own method go
        sections[stage] = {"method": value.strip(), "why": "asked for on the command line"}


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _choice(stage: str, section: dict[str, Any], where: str) -> Choice:
    methods = STAGES[stage]
    method = str(section.pop("method", _AUTO.get(stage, next(iter(methods)))))
    why = str(section.pop("why", ""))
    if method not in methods and _AUTO.get(stage) != method:
        known = [*_AUTO.get(stage, "").split(), *methods]
        raise UsageError(
            "unknown_name", f"no such method of stage {stage}", where=where, got=method, wanted=", ".join(known)
        )
    defaults = options_of(methods[method]) if method in methods else {}
    for option, value in section.items():
        if option not in defaults:
            got, known_options = f"{stage}.{option}", ", ".join(defaults) or "none"
            raise UsageError("unknown_name", f"{method} has no such option", where=where, got=got, wanted=known_options)
        section[option] = _checked(stage, method, option, value, default=defaults[option], where=where)
    return Choice(method, {**defaults, **section}, why)


def _checked(stage: str, method: str, option: str, value: Any, *, default: Any, where: str) -> Any:
    """The value in the type of its default; whole numbers may stand for floats, nothing else is converted.

    A number is finite and above 0, or 0 where that means something: where it is the default, or switches off.
    """
    wanted = f"like {default!r}"
    if isinstance(default, (bool, str)):
        if type(value) is type(default):
            return value
    else:
        zero = default == 0 or bool({option, f"{method}.{option}"} & ZERO_MEANS_OFF)
        low, high = _SMALLEST, _LARGEST_MM if option.endswith("_mm") else _LARGEST
        kinds = (int, float) if isinstance(default, float) else (int,)
        if type(value) in kinds and ((value == 0 and zero) or low <= value <= high):
            return type(default)(value)
        wanted += f", {'0 or ' if zero else ''}above 0, to {high:g}"
    place = f"{where} {stage}.{option}"
    raise UsageError("bad_value", "an option has a wrong value", where=place, got=repr(value), wanted=wanted)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
