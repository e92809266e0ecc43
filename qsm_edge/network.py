"""Layer 3: the door to onnxruntime. ``load(path) -> Network``, ``Network.segment(tensor) -> array``.

A model is an ONNX file with a card of the same name and the suffix .toml beside it. The card says what the file must be
(SHA-256, grid, axes, scaling, meaning of the output); a file that is not what its card says is refused, never run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import numpy as np

from qsm_edge.backend import threads as usable_threads
from qsm_edge.errors import ModelRefused, UsageError
from qsm_edge.masking.windows import averaged
from qsm_edge.modelcard import Card, read_card
from qsm_edge.types import Note

RUNTIMES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml", "onnxruntime-qnn")
PROVIDERS = {
    "cuda": "CUDAExecutionProvider",
    "directml": "DmlExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "cpu": "CPUExecutionProvider",
}
CPU = PROVIDERS["cpu"]
AUTO = tuple(
    PROVIDERS[name] for name in ("cuda", "directml", "openvino", "cpu")
)  # TensorRT compiles for minutes: by name only
LARGEST_BYTES = 1_000_000_000


class Network:
    """A loaded model: `segment` runs it; `provider` is what it runs on; `notes` tell of every fallback so far.

    `fine` is the second network of a card that has one, else None.
    """

    def __init__(self, card: Card, content: bytes, wanted: Sequence[str], threads: int, where: str) -> None:
        self.card = card
        self.fine: Network | None = None
        self._content, self._threads, self._where = content, threads, where
        self._notes: list[Note] = []
        self._session, self.provider = self._start(wanted)
        _check(self._session, card, where)

    @property
    def notes(self) -> tuple[Note, ...]:
        """A Note network_fallback for each provider that was wanted and did not run, of either network, once."""
        return tuple(dict.fromkeys((*self._notes, *(self.fine.notes if self.fine else ()))))

    def segment(self, tensor: np.ndarray) -> np.ndarray:
        """The model's continuous output (1, channels, z, y, x) for a float32 tensor (1, inputs, z, y, x) of the card's shape.

        A card with windows takes any shape and has the network run on each window. Where an accelerator fails while it
        runs, the CPU runs the network again, and `notes` say so.
        """
        wanted = (1, self.card.inputs, *(self.card.shape or tensor.shape[-3:]))
        if tensor.shape != wanted or tensor.dtype != np.float32:
            got = f"{tensor.shape} {tensor.dtype}"
            raise ModelRefused("model_foreign", "wrong input", got=got, wanted=f"{wanted} float32")
        windows = self.card.windows
        if windows:
            return averaged(tensor, windows.share, windows.overlap, self._checked_run)
        return self._checked_run(np.ascontiguousarray(tensor))

    def _checked_run(self, values: np.ndarray) -> np.ndarray:
        try:
            out = self._run(values)
        except Exception as error:  # onnxruntime's exceptions share no public base
            if self.provider == CPU:
                what = "the network cannot be run"
                raise ModelRefused("model_foreign", what, where=self._where, got=type(error).__name__) from error
            self._fell_back(self.provider, "failed while it ran")
            self._session, self.provider = self._start((CPU,))
            out = self._run(values)
        if out.shape != (1, self.card.channels, *values.shape[2:]) or not np.isfinite(out).all():
            raise ModelRefused("model_foreign", "the output is not a finite volume of the input's shape", got=out.shape)
        return out

    def _run(self, values: np.ndarray) -> np.ndarray:
        (out,) = self._session.run(None, {self._session.get_inputs()[0].name: values})
        return np.asarray(out, dtype=np.float32)

    def _fell_back(self, provider: str, why: str) -> None:
        self._notes.append(Note("network_fallback", f"The mask network did not run on {provider}: {why}."))

    def _start(self, wanted: Sequence[str]) -> tuple[Any, str]:
        """A session on the first of `wanted` that really runs. Loaded from memory: no other file can be reached."""
        runtime = _runtime()
        available = runtime.get_available_providers()
        failure = "no provider"
        for provider in wanted:
            if provider not in available:
                self._fell_back(provider, "the installed onnxruntime does not have it")
                continue
            chain = list(dict.fromkeys((provider, CPU)))
            try:
                session = runtime.InferenceSession(self._content, _options(runtime, self._threads, provider), chain)
            except Exception as error:
                failure = type(error).__name__
                if provider != CPU:
                    self._fell_back(provider, "it did not take the model")
                continue
            if (
                session.get_providers()[0] == provider
            ):  # it goes on alone without, when a driver or a library is missing
                return session, provider
            self._fell_back(provider, "a driver or library is missing")
        raise ModelRefused("model_foreign", "onnxruntime cannot load the file", where=self._where, got=failure)


def default_model() -> Path | None:
    """The model that comes with the package, None when there is none."""
    path = Path(str(resources.files("qsm_edge") / "models" / "qsmmask.onnx"))
    return path if path.is_file() else None


def load(path: Path, *, providers: str = "auto", threads: int | None = None) -> Network:
    """A network ready to run, after its card, checksum, opset, operators, inputs and outputs have been checked.

    `providers`: 'auto' (the fastest that is installed and works) or names separated by commas, out of `PROVIDERS` or as
    onnxruntime spells them, in order of preference; when one cannot be used the next is, the CPU at last, and a note says so.
    Raises ModelRefused: no_model (file or onnxruntime missing), model_card, model_checksum, model_foreign; UsageError
    unknown_name for a provider, bad_value for threads.
    """
    path = Path(path)
    if threads is not None and threads < 1:
        raise UsageError("bad_value", "threads", got=threads, wanted="1 or more")
    named = _named(providers)
    if not path.is_file():
        raise ModelRefused("no_model", where=path.name, got="no such file")
    card = read_card(path)
    files = [(path, card)] + ([(path.with_name(card.fine.file), card.fine)] if card.fine else [])
    contents = [_checked(file, its) for file, its in files]
    available = _runtime().get_available_providers()
    wanted = named or [p for p in AUTO if p in available]
    loaded = [
        Network(its, content, wanted, threads or usable_threads(), file.name)
        for (file, its), content in zip(files, contents, strict=True)
    ]
    loaded[0].fine = loaded[1] if card.fine else None
    return loaded[0]


def _checked(path: Path, card: Card) -> bytes:
    """The bytes of a model file that is what its card says."""
    if not path.is_file():
        raise ModelRefused("no_model", where=path.name, got="no such file")
    if path.stat().st_size > LARGEST_BYTES:
        raise ModelRefused("model_foreign", "the file is too large", where=path.name, got=path.stat().st_size)
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != card.sha256:
        raise ModelRefused("model_checksum", where=path.name, got=digest, wanted=card.sha256)
    _inspect(content, card, path.name)
    return content


def installed_runtimes() -> dict[str, str]:
    """Wheels of onnxruntime that are installed, with their versions; more than one have overwritten each other's files."""
    wheels = {}
    for name in RUNTIMES:
        try:
            wheels[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return wheels


def available_providers() -> tuple[str, ...]:
    """The providers of the installed onnxruntime as it spells them; () where none is installed."""
    try:
        return tuple(_runtime().get_available_providers())
    except ModelRefused:
        return ()


def _runtime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        wanted = "pip install 'qsm-edge[cpu]' or 'qsm-edge[gpu]'"
        raise ModelRefused(
            "no_model", "onnxruntime is not installed", got=type(error).__name__, wanted=wanted
        ) from None
    return onnxruntime


def _named(providers: str) -> list[str]:
    """Providers as onnxruntime spells them, the CPU last; [] for 'auto'."""
    names = [name.strip() for name in providers.split(",") if name.strip()]
    if names == ["auto"]:
        return []
    spelled = [PROVIDERS.get(name.lower(), name) for name in names]
    if not names or any(name not in PROVIDERS.values() for name in spelled):
        raise UsageError("unknown_name", "no such provider", got=providers, wanted=", ".join(("auto", *PROVIDERS)))
    return list(dict.fromkeys((*spelled, CPU)))


def _options(runtime: Any, threads: int, provider: str) -> Any:
    """Deterministic and quiet; nothing is kept after the one inference of a study, and no thread spins while it waits."""
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = runtime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.use_deterministic_compute = True
    options.log_severity_level = 4
    options.enable_cpu_mem_arena = False  # it would hold its memory for nothing
    options.enable_mem_pattern = provider != PROVIDERS["directml"]  # which cannot work with it
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    runtime.disable_telemetry_events()
    return options


def _check(session: Any, card: Card, where: str) -> None:
    """One float input and one float output of the card's static shape, or of a free one where it has none, else model_foreign."""
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if len(inputs) != 1 or len(outputs) != 1:
        got = f"{len(inputs)} inputs, {len(outputs)} outputs"
        raise ModelRefused("model_foreign", where=where, got=got, wanted="one of each")
    for what, end, channels in (("input", inputs[0], card.inputs), ("output", outputs[0], card.channels)):
        if card.shape:
            wanted, fits = str([1, channels, *card.shape]), list(end.shape) == [1, channels, *card.shape]
        else:
            wanted, fits = f"[1, {channels}] and three free axes", _is_free(list(end.shape), channels)
        if end.type != "tensor(float)" or not fits:
            got = f"{end.type} {end.shape}"
            text = f"not the {what} of the card"
            raise ModelRefused("model_foreign", text, where=where, got=got, wanted=f"tensor(float) {wanted}")


def _is_free(shape: list[int | str | None], channels: int) -> bool:
    return len(shape) == 5 and shape[:2] == [1, channels] and not any(isinstance(n, int) for n in shape[2:])


# What an ONNX file, a protobuf message, says about itself: message -> {field: message below it}, as far as tensors, operators
# and opsets can hide there. A length that runs over the end of its message tells a cut file.
_BELOW: dict[str, dict[int, str]] = {
    "model": {7: "graph", 8: "opset", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 9: "opset", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}


def _inspect(content: bytes, card: Card, where: str) -> None:
    """Refuse a cut or foreign file, weights in other files, operators outside the standard, and another opset than the card's."""
    opsets: dict[str, int] = {}
    found: set[str] = set()
    try:
        _walk(memoryview(content), "model", opsets, found, 0)
    except (ValueError, IndexError) as error:
        raise ModelRefused("model_foreign", "this is no whole ONNX file", where=where, got=error) from None
    if "external" in found:
        raise ModelRefused("model_foreign", "the network keeps weights in other files", where=where, wanted="one file")
    own = {name for name in opsets if name not in ("", "ai.onnx")} | {n[7:] for n in found if n.startswith("domain:")}
    if own or "node" not in found:
        got = f"operators of {', '.join(sorted(own))}" if own else "no operators"
        raise ModelRefused("model_foreign", where=where, got=got, wanted="the standard's operators")
    opset = max(opsets.values(), default=0)
    if opset != card.opset:
        raise ModelRefused("model_foreign", "not the opset of the card", where=where, got=opset, wanted=card.opset)


def _walk(message: memoryview, kind: str, opsets: dict[str, int], found: set[str], depth: int) -> None:
    if depth > 32:
        raise ValueError("nested too deeply")
    found.add(kind)
    domain, version = "", 0
    for number, value in _fields(message):
        at = (kind, number)
        if isinstance(value, memoryview) and number in _BELOW.get(kind, {}):
            _walk(value, _BELOW[kind][number], opsets, found, depth + 1)
        elif isinstance(value, memoryview):
            if at == ("opset", 1):
                domain = bytes(value).decode()
            elif at == ("node", 7) and bytes(value) not in (b"", b"ai.onnx"):
                found.add(f"domain:{bytes(value).decode()}")
            elif at == ("tensor", 13):
                found.add("external")
        elif at == ("opset", 2):
            version = value
        elif at == ("tensor", 14) and value:
            found.add("external")
    if kind == "opset":
        opsets[domain] = version


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(field, value) of a protobuf message: an int of a varint, the bytes of what has a length; fixed-size numbers are passed."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        if key & 7 == 0:
            value, at = _varint(message, at)
            yield key >> 3, value
            continue
        if key & 7 not in (1, 2, 5) or not key >> 3:
            raise ValueError(f"no field begins with {key}")
        length, at = _varint(message, at) if key & 7 == 2 else ({1: 8, 5: 4}[key & 7], at)
        if length > len(message) - at:
            raise ValueError(f"{length} bytes announced, {len(message) - at} left")
        if key & 7 == 2:
            yield key >> 3, message[at : at + length]
        at += length


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = message[at]  # IndexError at the end
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
    raise ValueError("a number without an end")
