"""Layer 4: the table of stages, in the order of the chain. A new method is one function and one line in its stage's table.

Every keyword-only argument of a method is an option of the recipe; its name and default live in the signature alone.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

from qsm_edge import background, echoes, edges, invert, masking, reference, strong_sources, support, unwrap, weights

Method = Callable[..., Any]

STAGES: Mapping[str, Mapping[str, Method]] = {
    "mask": masking.METHODS,
    "support": support.METHODS,
    "unwrap": unwrap.METHODS,
    "echoes": echoes.METHODS,
    "weight": weights.METHODS,
    "background": background.METHODS,
    "strong_sources": strong_sources.METHODS,
    "rim": weights.RIM_METHODS,
    "edges": edges.METHODS,
    "invert": invert.METHODS,
    "reference": reference.METHODS,
}

#: Arguments that the pipeline gives itself.
RESERVED = ("on_iteration", "on_note", "on_confidence", "model", "threads")


def options_of(function: Method) -> dict[str, Any]:
    """The options of a method with their defaults, out of its signature."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in RESERVED}


def accepts(function: Method, name: str) -> bool:
    """Whether a method takes the keyword `name`."""
    return name in inspect.signature(function).parameters


def sentence_of(function: Method) -> str:
    """The first paragraph of a method's docstring, the sentence that the methods paragraph quotes."""
    text = inspect.getdoc(function) or function.__name__
    return " ".join(text.split("\n\n")[0].split())


def dois_of(function: Method) -> tuple[str, ...]:
    """The DOIs that a method's docstring cites, in order."""
    found = re.findall(r"doi:\s*(10\.\d{4,9}/[^\s,;]+)", inspect.getdoc(function) or "")
    return tuple(dict.fromkeys(doi.rstrip(".)") for doi in found))
