"""A trained network as ONNX with its card: ``python -m export.to_onnx RUN/best.pt OUT.onnx`` (see --help).

The file is checked, its shapes are inferred, and it is refused unless torch and onnxruntime agree to 1e-4 on heads that
went through the runtime's own `masking.prepare`. `--checkpoint` turns weights of the published architecture, which a site has
obtained itself, into a file that this runtime runs with the published windows; such weights are never shipped.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

from export.anatomy import CLOSING_MM
from export.data import CARD, WORK, Source
from export.model import INPUTS, FineNet, folded
from export.train import build

TOLERANCE = 1e-4
OPSET = 18
SMALLEST = 512  # values; below that a tensor is not worth a conversion


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="export.to_onnx", description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("weights", type=Path, help="best.pt of a run, or a state dict with --checkpoint")
    parser.add_argument("out", type=Path, help="the .onnx to write; its card gets the suffix .toml")
    parser.add_argument("--checkpoint", action="store_true", help="the weights are those of the published architecture")
    parser.add_argument("--name", default="qsm-edge mask")
    parser.add_argument("--version", default="1")
    parser.add_argument("--licence", default="Apache-2.0")
    parser.add_argument("--threshold", type=float, default=0.5)
    parser.add_argument("--guard", type=float, default=0.1, help="least probability of the mask where tissue is closed")
    parser.add_argument(
        "--mirror",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="whether the runtime has the network look at the mirrored head too, for twice the time",
    )
    parser.add_argument("--about", action="append", default=[], metavar="KEY=TEXT", help="a line of the card's [about]")
    parser.add_argument(
        "--precision", choices=("float32", "float16", "int8"), default="float16", help="of the stored weights"
    )
    parser.add_argument(
        "--fine", type=Path, help="last.pt of a run of export.fine: a second network, into OUT-fine.onnx"
    )
    parser.add_argument("--fine-threshold", type=float, default=0.5)
    parser.add_argument("--fine-guard", type=float, default=0.3)
    parser.add_argument(
        "--fine-dark", type=float, nargs=2, metavar=("SHARE", "THRESHOLD"), help="see masking's card: dark"
    )
    parser.add_argument(
        "--label-maps", type=Path, help="heads for the comparison; procedural ones where it is not given"
    )
    parser.add_argument("--samples", type=int, default=2)
    args = parser.parse_args(arguments)
    if args.checkpoint:
        from export.published import convert

        convert(args)
        return 0
    state = torch.load(args.weights, weights_only=True, map_location="cpu")
    network = build(state["size"], outputs=outputs_of(state["average"]))
    network.load_state_dict(state["average"])
    network = folded(network).eval()
    if args.precision == "float16":
        rounded(network)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    whole = args.out.with_suffix(".float32.onnx")
    exported(network, torch.zeros(1, 1, *CARD.shape), whole)
    source = Source(args.label_maps, "develop", WORK)
    tensors = [source.pair(k).tensor.astype(np.float32)[None, None] for k in range(args.samples)]
    {
        "float32": lambda: args.out.write_bytes(whole.read_bytes()),
        "float16": lambda: halved(whole, args.out),
        "int8": lambda: quantised(whole, args.out),
    }[args.precision]()
    whole.unlink()
    worst = difference(network, args.out, tensors)
    print(f"{args.out.name}: {args.out.stat().st_size / 1e6:.2f} MB, torch and onnxruntime differ by {worst:.1e}")
    if args.precision != "int8" and not worst <= TOLERANCE:
        args.out.unlink()
        raise SystemExit(f"torch and onnxruntime differ by {worst:.1e}, wanted {TOLERANCE:.0e} at most")
    about = dict(line.split("=", 1) for line in args.about)
    about.setdefault("trained_steps", str(state["step"]))
    about.setdefault("commit", commit())
    write_card(args.out, args, about, fine=second(args, source) if args.fine else None)
    return 0


def second(args: argparse.Namespace, source: Source) -> list[str]:
    """Export the second network, compared like the first; returns its lines of the card."""
    from export.fine import compared

    state = torch.load(args.fine, weights_only=True, map_location="cpu")
    network = FineNet(state["width"], state["blocks"])
    network.load_state_dict(state["average"])
    network = folded(network).eval()
    rounded(network)
    out = args.out.with_name(f"{args.out.stem}-fine.onnx")
    whole = out.with_suffix(".float32.onnx")
    sides = dict(enumerate((2 * torch.export.Dim(axis) for axis in "zyx"), 2))
    exported(network, torch.zeros(1, INPUTS, 40, 48, 44), whole, dynamic_shapes={"x": sides})
    halved(whole, out)
    whole.unlink()
    worst = difference(network, out, compared(source, args.samples))
    print(f"{out.name}: {out.stat().st_size / 1e6:.2f} MB, torch and onnxruntime differ by {worst:.1e}")
    if not worst <= TOLERANCE:
        out.unlink()
        raise SystemExit(f"torch and onnxruntime differ by {worst:.1e}, wanted {TOLERANCE:.0e} at most")
    digest = hashlib.sha256(out.read_bytes()).hexdigest()
    cuts = [f"threshold = {args.fine_threshold}", f"guard = {args.fine_guard}"]
    if args.fine_dark:
        cuts += [f"dark = {args.fine_dark[0]}", f"dark_threshold = {args.fine_dark[1]}"]
    return ["[fine]", f'file = "{out.name}"', f'sha256 = "{digest}"', *cuts, ""]


def outputs_of(weights: dict[str, torch.Tensor]) -> int:
    """How many volumes the network of these weights gives."""
    return weights["out.weight"].shape[0] // 8 if "out.weight" in weights else weights["final_conv.weight"].shape[0]


def rounded(network: torch.nn.Module) -> None:
    """Weights as float16 will keep them, so that the comparison is of what ships."""
    with torch.no_grad():
        for weight in network.parameters():
            if weight.numel() >= SMALLEST:
                weight.copy_(weight.half().float())


def exported(network: torch.nn.Module, example: torch.Tensor, path: Path, **options: Any) -> None:
    """By torch's dynamo exporter; checked, with shapes inferred, everything in one file."""
    program = torch.onnx.export(
        network,
        (example,),
        dynamo=True,
        opset_version=OPSET,
        input_names=["magnitude"],
        output_names=["logit"],
        verbose=False,
        **options,
    )
    program.save(str(path), external_data=False)
    model = onnx.shape_inference.infer_shapes(onnx.load(path), strict_mode=True)
    del model.metadata_props[:]
    for node in model.graph.node:  # the exporter keeps stack traces with file names there
        del node.metadata_props[:]
        node.doc_string = ""
    for value in [*model.graph.input, *model.graph.output, *model.graph.value_info]:
        del value.metadata_props[:]
    del model.graph.metadata_props[:]
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(path))


def halved(source: Path, out: Path) -> None:
    """Weights stored as float16 and cast when the file is loaded; the arithmetic stays float32."""
    model = onnx.load(source)
    casts = []
    for initial in list(model.graph.initializer):
        if initial.data_type == TensorProto.FLOAT and np.prod(initial.dims) >= SMALLEST:
            values = numpy_helper.to_array(initial).astype(np.float16)
            model.graph.initializer.remove(initial)
            model.graph.initializer.append(numpy_helper.from_array(values, f"{initial.name}.half"))
            casts.append(helper.make_node("Cast", [f"{initial.name}.half"], [initial.name], to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(out))


def quantised(source: Path, out: Path) -> None:
    """Dynamic int8 by onnxruntime: to be measured, not shipped unless it pays."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(source, out, weight_type=QuantType.QUInt8)


def difference(network: torch.nn.Module, path: Path, tensors: list[np.ndarray]) -> float:
    """The largest difference of probabilities over `tensors`; not a number where there is nothing to compare."""
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    worst = 0.0 if tensors else float("nan")
    for tensor in tensors:
        with torch.no_grad():
            ours = torch.sigmoid(network(torch.from_numpy(tensor))).numpy()
        theirs = 1 / (1 + np.exp(-session.run(None, {name: tensor})[0]))
        worst = max(worst, float(np.abs(ours - theirs).max()))
    return worst


def write_card(
    path: Path,
    args: argparse.Namespace,
    about: dict[str, str],
    grid: list[str] | None = None,
    fine: list[str] | None = None,
) -> None:
    """The .toml beside the .onnx, as `qsm_edge.modelcard` reads it.

    grid : other lines for [input] than those of `CARD`. fine : the lines of [fine].
    """
    quoted = lambda text: '"' + str(text).replace("\\", "\\\\").replace('"', '\\"') + '"'  # noqa: E731
    lines = [
        f"name = {quoted(args.name)}",
        f"version = {quoted(args.version)}",
        f"sha256 = {quoted(hashlib.sha256(path.read_bytes()).hexdigest())}",
        f"opset = {opset(path)}",
        f"licence = {quoted(args.licence)}",
        "",
        *(grid or own_input()),
        "",
        "[output]",
        'kind = "logit"',
        f"threshold = {args.threshold}",
        *(
            []
            if grid
            else [f"mirror = {str(args.mirror).lower()}", f"closing_mm = {CLOSING_MM}", f"guard = {args.guard}"]
        ),
        "",
        *(fine or []),
        "[about]",
        *[f"{key} = {quoted(text)}" for key, text in sorted(about.items())],
        "",
    ]
    path.with_suffix(".toml").write_text("\n".join(lines), encoding="utf-8")


def own_input() -> list[str]:
    """[input] of our own network."""
    return [
        "[input]",
        f"shape = {list(CARD.shape)}",
        f"spacing_mm = {list(CARD.spacing_mm)}",
        f'axes = "{CARD.axes}"',
        f'normalisation = "{CARD.normalisation}"',
        f'centre = "{CARD.centre}"',
    ]


def opset(path: Path) -> int:
    return next(
        int(o.version) for o in onnx.load(path, load_external_data=False).opset_import if o.domain in ("", "ai.onnx")
    )


def commit() -> str:
    """Of the checkout that exports."""
    found = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False, cwd=Path(__file__).parent
    )
    return found.stdout.strip() or "unknown"


if __name__ == "__main__":
    raise SystemExit(main())
