"""What the console's fields ask for: the parameters that the image label declares, as JSON in the stream.

The names here and in `deploy/openrecon/label.json` are the same; a test holds them together.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from qsm_edge.errors import UsageError
from qsm_edge.recipe import Recipe
from qsm_edge.run import MASKS, Options, check_mask_options

#: The one configuration that there is; consoles that choose among several name it.
CONFIG = "qsmedge"
#: Each parameter and what it is in the label.
PARAMETERS = {"config": "choice", "recipe": "choice", "mask": "choice", "settings": "string", "sendoriginal": "boolean"}
_TRUTHS = {"true": True, "1": True, "false": False, "0": False}


@dataclass(frozen=True)
class Wishes:
    """How to reconstruct, and whether the images that came go back beside the result."""

    options: Options
    send_original: bool = True


def parameters_in(text: str) -> Mapping[str, Any] | None:
    """The parameters that a text of the stream sets: None where it is no JSON object, and sets none.

    Raises UsageError bad_value where it begins like one and is not understood.
    """
    if not text.lstrip().startswith("{"):
        return None
    try:
        document = json.loads(text)
        parameters = document.get("parameters", {})
    except (ValueError, RecursionError):
        parameters = None
    if not isinstance(parameters, dict):
        raise UsageError("bad_value", "the parameters are not understood", wanted='{"parameters": {...}} in JSON')
    return parameters


def wishes(parameters: Mapping[str, Any], defaults: Options) -> Wishes:
    """The parameters over the server's own options.

    Raises
    ------
    UsageError
        unknown_name: no such parameter, configuration, recipe, mask, stage or option; bad_value: of another kind or range;
        bad_call: they contradict one another. Values are the operator's, and repeated in the message.
    """
    for name, value in parameters.items():
        if name not in PARAMETERS:
            raise UsageError("unknown_name", "no such parameter", got=name[:40], wanted=", ".join(PARAMETERS))
        if not isinstance(value, str) and not (PARAMETERS[name] == "boolean" and isinstance(value, bool)):
            wanted = {"boolean": "true or false"}.get(PARAMETERS[name], "a text")
            raise UsageError("bad_value", f"the parameter {name} is of another kind", wanted=wanted)
    _one_of(parameters, "config", (CONFIG,))
    changed = replace(
        defaults,
        recipe=_one_of(parameters, "recipe", Recipe.names()) or defaults.recipe,
        mask=_one_of(parameters, "mask", MASKS) or defaults.mask,
        overrides=(*defaults.overrides, *re.split(r"[\s;]+", parameters.get("settings", ""))),
    )
    changed = replace(changed, overrides=tuple(text for text in changed.overrides if text))
    check_mask_options(Recipe.load(changed.recipe, changed.overrides), changed)
    return Wishes(changed, _truth(parameters.get("sendoriginal", True)))


def _one_of(parameters: Mapping[str, Any], name: str, known: tuple[str, ...]) -> str:
    """The value of a choice, '' where it is not set. A recipe is chosen by name here: the console reads no files."""
    value = str(parameters.get(name, ""))
    if value and value not in known:
        raise UsageError("unknown_name", f"no such {name}", got=value[:40], wanted=", ".join(known))
    return value


def _truth(value: Any) -> bool:
    """A console sends its switches as texts."""
    told = _TRUTHS.get(str(value).strip().lower())
    if told is None:
        raise UsageError("bad_value", "the parameter sendoriginal", got=str(value)[:40], wanted="true or false")
    return told
