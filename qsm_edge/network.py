"""Layer 3: the door to onnxruntime. ``load(path) -> Network``, ``Network.segment(tensor) -> array``.

A model is an ONNX file with a card of the same name and the suffix .toml beside it. The card says what the file must be
(SHA-256, grid, axes, scaling, meaning of the output); a file that is not what its card says is refused, never run.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import numpy as np

from qsm_edge.backend import threads as usable_threads
from qsm_edge.errors import ModelRefused
from qsm_edge.types import Note

RUNTIMES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml")
PREFERRED = (
    "TensorrtExecutionProvider",
    "CUDAExecutionProvider",
    "OpenVINOExecutionProvider",
    "DmlExecutionProvider",
    "CPUExecutionProvider",
)
OUTPUTS = ("probability", "logit", "signed_distance")
LARGEST_BYTES = 1_000_000_000


@dataclass(frozen=True)
class Card:
    """What a model file is and how it is used.

    shape (3 voxels), spacing_mm (3), axes (three patient directions, such as 'SPL'), normalisation and centre as
    `masking.grid` knows them; output 'probability', 'logit' or 'signed_distance' (positive inside); threshold on it.
    """

    name: str
    version: str
    sha256: str
    licence: str
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    axes: str
    normalisation: str
    centre: str
    output: str
    threshold: float


@dataclass(frozen=True)
class Network:
    """A loaded model: `segment` runs it; `provider` is what it runs on; `notes` tell of a fallback."""

    card: Card
    provider: str
    notes: tuple[Note, ...]
    session: Any

    def segment(self, tensor: np.ndarray) -> np.ndarray:
        """The model's continuous output for a float32 tensor of the card's shape (1, 1, z, y, x), same shape."""
        wanted = (1, 1, *self.card.shape)
        if tensor.shape != wanted or tensor.dtype != np.float32:
            raise ModelRefused(
                "model_foreign", "wrong input", got=f"{tensor.shape} {tensor.dtype}", wanted=f"{wanted} float32"
            )
        (out,) = self.session.run(None, {self.session.get_inputs()[0].name: np.ascontiguousarray(tensor)})
        out = np.asarray(out, dtype=np.float32)
        if out.shape != wanted or not np.isfinite(out).all():
            raise ModelRefused("model_foreign", "the output is not a finite volume of the input's shape", got=out.shape)
        return out


def default_model() -> Path | None:
    """The model that comes with the package, None when there is none."""
    path = Path(str(resources.files("qsm_edge") / "models" / "qsmmask.onnx"))
    return path if path.is_file() else None


def require_default() -> Path:
    """`default_model`, or ModelRefused no_model."""
    path = default_model()
    if path is None:
        raise ModelRefused("no_model", wanted="a model file with its card (--model FILE.onnx), or --mask threshold")
    return path


def load(path: Path, *, providers: str = "auto", threads: int | None = None) -> Network:
    """A network ready to run, after its card, checksum, inputs and outputs have been checked.

    `providers`: 'auto' (the fastest that is installed and works) or names separated by commas, in order of preference; when
    the first cannot be used the next is, the CPU at last, and a note says so. Raises ModelRefused: no_model (file or
    onnxruntime missing), model_card, model_checksum, model_foreign.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelRefused("no_model", where=path.name, got="no such file")
    card = read_card(path)
    if path.stat().st_size > LARGEST_BYTES:
        raise ModelRefused("model_foreign", "the file is too large", where=path.name, got=path.stat().st_size)
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != card.sha256:
        raise ModelRefused("model_checksum", where=path.name, got=digest, wanted=card.sha256)
    runtime = _runtime()
    wanted = _wanted(providers, runtime.get_available_providers())
    session, notes = _session(runtime, content, wanted, threads or usable_threads(), path.name)
    used = session.get_providers()[0]
    if providers != "auto" and used != wanted[0]:
        notes.append(Note("network_fallback", f"{wanted[0]} could not be used; the mask network ran on {used}."))
    _check(session, card, path.name)
    return Network(card, used, tuple(notes), session)


def read_card(path: Path) -> Card:
    """The card beside a model file; raises ModelRefused model_card with what is missing or wrong."""
    card = path.with_suffix(".toml")
    try:
        table = tomllib.loads(card.read_text(encoding="utf-8"))
        grid, output = table["input"], table["output"]
        read = Card(
            name=str(table["name"]),
            version=str(table["version"]),
            sha256=str(table["sha256"]).lower(),
            licence=str(table["licence"]),
            shape=_three(grid["shape"], int),
            spacing_mm=_three(grid["spacing_mm"], float),
            axes=str(grid["axes"]),
            normalisation=str(grid["normalisation"]),
            centre=str(grid.get("centre", "volume")),
            output=str(output["kind"]),
            threshold=float(output["threshold"]),
        )
    except OSError:
        raise ModelRefused(
            "model_card", "the model has no card", where=card.name, wanted="a .toml beside the .onnx"
        ) from None
    except (tomllib.TOMLDecodeError, KeyError, TypeError, ValueError, UnicodeDecodeError) as error:
        raise ModelRefused("model_card", where=card.name, got=f"{type(error).__name__}: {error}") from None
    if min(read.shape) < 8 or max(read.shape) > 1024 or not all(0.1 <= s <= 20 for s in read.spacing_mm):
        raise ModelRefused("model_card", "the grid is implausible", where=card.name, got=(read.shape, read.spacing_mm))
    if read.output not in OUTPUTS or sorted(
        "LPS".find({"R": "L", "A": "P", "I": "S"}.get(a, a)) for a in read.axes
    ) != [0, 1, 2]:
        raise ModelRefused(
            "model_card", where=card.name, got=f"{read.output}, {read.axes}", wanted=f"{OUTPUTS}, axes like SPL"
        )
    return read


def installed_runtimes() -> dict[str, Any]:
    """For `doctor`: wheels of onnxruntime found, their versions, the providers, and whether two wheels overwrite each other."""
    wheels = {}
    for name in RUNTIMES:
        try:
            wheels[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    providers: list[str] = []
    if wheels:
        try:
            providers = list(_runtime().get_available_providers())
        except ModelRefused:
            providers = []
    return {"wheels": wheels, "providers": providers, "rivals": len(wheels) > 1}


def _three(values: Sequence[Any], kind: type) -> Any:
    a, b, c = (kind(v) for v in values)
    return a, b, c


def _runtime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        wanted = "pip install 'qsm-edge[cpu]' or 'qsm-edge[gpu]'"
        raise ModelRefused(
            "no_model", "onnxruntime is not installed", got=type(error).__name__, wanted=wanted
        ) from None
    return onnxruntime


def _wanted(providers: str, available: Sequence[str]) -> list[str]:
    if providers == "auto":
        return [p for p in PREFERRED if p in available] or ["CPUExecutionProvider"]
    names = [p.strip() for p in providers.split(",") if p.strip()]
    return [*names, *(["CPUExecutionProvider"] if "CPUExecutionProvider" not in names else [])]


def _session(runtime: Any, content: bytes, wanted: list[str], threads: int, where: str) -> tuple[Any, list[Note]]:
    """A session on the first provider that takes the model. Loaded from memory: external data files cannot be reached."""
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = False  # one inference a study: the arena would hold its memory for nothing
    notes: list[Note] = []
    available = runtime.get_available_providers()
    failure: Exception | None = None
    for start, name in enumerate(wanted):
        if name not in available:
            continue
        try:
            return runtime.InferenceSession(content, options, providers=wanted_from(wanted[start:], available)), notes
        except Exception as error:  # onnxruntime's exceptions share no public base
            failure = error
            if name != "CPUExecutionProvider":
                notes.append(
                    Note("network_fallback", f"{name} did not take the mask network; the next provider was tried.")
                )
    got = type(failure).__name__ if failure else "no provider"
    raise ModelRefused("model_foreign", "onnxruntime cannot load the file", where=where, got=got)


def wanted_from(names: list[str], available: Sequence[str]) -> list[str]:
    """Those of `names` that are available, in their order."""
    return [n for n in names if n in available]


def _check(session: Any, card: Card, where: str) -> None:
    """One float input and one output of the card's static shape, or model_foreign."""
    wanted = [1, 1, *card.shape]
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if len(inputs) != 1 or len(outputs) != 1:
        got = f"{len(inputs)} inputs, {len(outputs)} outputs"
        raise ModelRefused("model_foreign", where=where, got=got, wanted="one of each")
    if inputs[0].type != "tensor(float)" or list(inputs[0].shape) != wanted:
        got = f"{inputs[0].type} {inputs[0].shape}"
        raise ModelRefused(
            "model_foreign", "not the input of the card", where=where, got=got, wanted=f"tensor(float) {wanted}"
        )
