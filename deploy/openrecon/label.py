"""The image label of OpenRecon: check `label.json`, print it as the label's value, or write the image recipe that holds it.

    python deploy/openrecon/label.py                     the value: base64 of the JSON
    python deploy/openrecon/label.py --check [VALUE]     check the JSON, or a value that an image has
    python deploy/openrecon/label.py --dockerfile FILE   `Dockerfile` with the label in it

The vendor's JSON schema (1.1.0) is not ours to pass on, and is not here. `FIELDS` and `problems` are our own reading of it:
names and kinds of fields, which are required, that there are no others; what only k-space applications need, and numbers
with a fraction, are left out. Where you have the schema, check with it as well. Needs nothing but Python.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
LABEL = "com.siemens-healthineers.magneticresonance.openrecon.metadata:1.1.0"
#: Fields of a console's card: more would not be shown.
MOST_PARAMETERS = 14

_TEXT, _WHOLE, _TRUTH, _SPOKEN = "a text", "a whole number", "true or false", '{"en": text}'
#: Each object's fields: what the value is, and whether it must be there.
FIELDS: dict[str, dict[str, tuple[Any, bool]]] = {
    "": {"general": ("general", True), "reconstruction": ("reconstruction", True), "parameters": (list, True)},
    "general": {
        **dict.fromkeys(("version", "vendor", "id"), (_TEXT, True)),
        **dict.fromkeys(("name", "information"), (_SPOKEN, True)),
        "regulatory_information": ("regulatory_information", True),
        "license_string": (_TEXT, False),
    },
    "regulatory_information": dict.fromkeys(
        (
            "device_trade_name",
            "production_identifier",
            "manufacturer_address",
            "made_in",
            "manufacture_date",
            "material_number",
            "gtin",
            "udi",
            "safety_advices",
            "special_operating_instructions",
            "additional_relevant_information",
        ),
        (_TEXT, True),
    ),
    "reconstruction": {
        "transfer_protocol": ("transfer_protocol", True),
        "port": (_WHOLE, True),
        "emitter": (("raw", "image"), True),
        "injector": (("compleximage", "image"), True),
        "can_use_gpu": (_TRUTH, True),
        "min_required_memory": (_WHOLE, True),
        "min_count_required_cpu_cores": (_WHOLE, True),
        "can_process_adjustment_data": (_TRUTH, False),
        "min_count_required_gpus": (_WHOLE, False),
        "min_required_gpu_memory": (_WHOLE, False),
        "content_qualification_type": (("PRODUCT", "SERVICE", "RESEARCH"), False),
        "require_readout_filter_off": (_TRUTH, False),
    },
    "transfer_protocol": {"protocol": (("ISMRMRD",), True), "version": (("1.4.1",), True)},
}
_COMMON = {"type": (_TEXT, True), "id": (_TEXT, True), "label": (_SPOKEN, True), "information": (_SPOKEN, False)}
PARAMETERS: dict[str, dict[str, tuple[Any, bool]]] = {
    "boolean": {**_COMMON, "default": (_TRUTH, True)},
    "string": {**_COMMON, "default": (_TEXT, False), "isLargeText": (_TRUTH, False)},
    "choice": {**_COMMON, "default": (_TEXT, True), "values": (list, True)},
    "int": {**_COMMON, **dict.fromkeys(("minimum", "maximum", "default"), (_WHOLE, True)), "unit": (_SPOKEN, False)},
}
VALUES = {"id": (_TEXT, True), "name": (_SPOKEN, True)}


def problems(label: Any) -> list[str]:
    """What is wrong with a label, a line each; none where nothing is."""
    found = list(_object(label, FIELDS[""], "label"))
    if found:
        return found
    if not re.fullmatch(r"(0|[1-9]\d*)(\.(0|[1-9]\d*)){2}", label["general"]["version"]):
        found.append("general.version: wanted three numbers with dots")
    parameters = label["parameters"]
    if len(parameters) > MOST_PARAMETERS:
        found.append(f"parameters: wanted {MOST_PARAMETERS} or fewer")
    for number, parameter in enumerate(parameters):
        found += _parameter(parameter, f"parameters[{number}]")
    names = [parameter.get("id") for parameter in parameters if isinstance(parameter, dict)]
    if len(set(map(str, names))) < len(parameters):
        found.append("parameters: an id is there twice")
    return found


def _parameter(parameter: Any, where: str) -> Iterator[str]:
    kind = parameter.get("type") if isinstance(parameter, dict) else None
    if not isinstance(kind, str) or kind not in PARAMETERS:
        yield f"{where}.type: wanted one of {', '.join(PARAMETERS)}"
        return
    wrong = list(_object(parameter, PARAMETERS[kind], where))
    yield from wrong
    if wrong:
        return
    if not re.fullmatch(r"[A-Za-z0-9]+", parameter["id"]):
        yield f"{where}.id: wanted letters and digits alone"
    if kind == "choice":
        for number, value in enumerate(parameter["values"]):
            yield from _object(value, VALUES, f"{where}.values[{number}]")
        if parameter["default"] not in [value.get("id") for value in parameter["values"] if isinstance(value, dict)]:
            yield f"{where}.default: is none of the values"
    if kind == "int" and not parameter["minimum"] <= parameter["default"] <= parameter["maximum"]:
        yield f"{where}.default: is out of range"


def _object(value: Any, fields: dict[str, tuple[Any, bool]], where: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{where}: wanted an object"
        return
    yield from (f"{where}.{name}: no such field" for name in value if name not in fields)
    for name, (wanted, required) in fields.items():
        if name in value:
            yield from _kind(value[name], wanted, f"{where}.{name}")
        elif required:
            yield f"{where}.{name}: is missing"


def _kind(value: Any, wanted: Any, where: str) -> Iterator[str]:
    if isinstance(wanted, tuple):
        if value not in wanted:
            yield f"{where}: wanted one of {', '.join(wanted)}"
    elif wanted in FIELDS:
        yield from _object(value, FIELDS[wanted], where)
    else:
        whole = isinstance(value, int) and not isinstance(value, bool)
        fits = {
            _TEXT: isinstance(value, str),
            _WHOLE: whole and value >= 0,
            _TRUTH: isinstance(value, bool),
            _SPOKEN: isinstance(value, dict) and isinstance(value.get("en"), str),
            list: isinstance(value, list),
        }
        if not fits[wanted]:
            yield f"{where}: wanted {'a list' if wanted is list else wanted}"


def encoded(label: Any) -> str:
    """The value of the image label."""
    return base64.b64encode(json.dumps(label, indent=2, ensure_ascii=False).encode("utf-8")).decode("ascii")


def decoded(value: str) -> Any:
    """A label out of its value. ValueError where it is none."""
    try:
        return json.loads(base64.b64decode(value, validate=True))
    except (binascii.Error, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError("the value is no JSON in base64") from error


def dockerfile(label: Any) -> str:
    """The recipe of the image with the label as its last line."""
    recipe = (HERE / "Dockerfile").read_text(encoding="utf-8")
    return f'{recipe}LABEL "{LABEL}"="{encoded(label)}"\n'


def main() -> int:
    """0 where the label is sound, 1 where it is not, with what is wrong on standard error."""
    parser = argparse.ArgumentParser(description="The image label of OpenRecon.")
    parser.add_argument("--check", nargs="?", const="", metavar="VALUE", help="check label.json, or a value")
    parser.add_argument("--dockerfile", type=Path, metavar="FILE", help="write the recipe with the label")
    args = parser.parse_args()
    try:
        label = decoded(args.check) if args.check else json.loads((HERE / "label.json").read_text(encoding="utf-8"))
        wrong = problems(label)
    except ValueError as error:
        wrong = [str(error)]
    sys.stderr.writelines(f"{line}\n" for line in wrong)
    if wrong:
        return 1
    if args.dockerfile is not None:
        args.dockerfile.write_text(dockerfile(label), encoding="utf-8")
    elif args.check is None:
        sys.stdout.write(encoded(label) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
