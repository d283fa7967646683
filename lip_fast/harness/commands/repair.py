"""``lip-fast repair``: the last layer of a saved model repaired from label statistics, without training."""

import argparse
import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from lip_fast.cli.errors import UserError
from lip_fast.cli.parser import Parser
from lip_fast.harness.files.outputs import check_outputs, new_files
from lip_fast.harness.files.plain import write_json
from lip_fast.harness.repairs.checkpoints import SAFETENSORS, TORCH, Layer, read_checkpoint
from lip_fast.harness.repairs.features import Rows, read_features, split_off
from lip_fast.harness.repairs.figures import save_candidates
from lip_fast.harness.training.processes import refuse_several
from lip_fast.repair import METHODS, RepairReport, repair
from lip_fast.statistics import LabelStatistics

__all__ = ["main"]

HOLDOUT_FRACTION = 0.2


def main(arguments: Sequence[str]) -> int:
    """Repair a layer, print the report, write the new checkpoint; returns the exit code 0.

    Raises:
        UserError: arguments or files are not what they must be; nothing has been written then.
    """
    refuse_several()
    options = _parse(arguments)
    checkpoint_path, features_path = Path(options.checkpoint), Path(options.features)
    # Before the outputs: a missing input is the likelier mistake.
    for kind, path in (("checkpoint", checkpoint_path), ("file of features", features_path)):
        if not os.path.isfile(path):
            raise UserError(f"expected a {kind}, found no file at {path}")
    out = _out(options, checkpoint_path)
    outputs = {"--report": options.report, "--figure": options.figure}
    targets = {name: Path(path) for name, path in outputs.items() if path is not None} | {"--out": out}
    replaced = list(targets.values()) if options.overwrite else []
    if options.in_place:
        replaced.append(out)

    inputs = {"the features": features_path} | (
        {} if options.in_place else {"the checkpoint (--in-place writes over it)": checkpoint_path}
    )
    check_outputs(targets, inputs, replaced)
    checkpoint = read_checkpoint(checkpoint_path)
    layer = checkpoint.layer(options.layer)
    l, q = layer.weight.shape
    data = read_features(features_path, q=q, l=l)
    if data.holdout is not None and options.holdout_fraction is not None:
        raise UserError(
            f"expected no --holdout-fraction, for {features_path} has a hold-out, "
            f"got {options.holdout_fraction}"
        )
    holdout, used = data.holdout, data.rows.labelled()
    if holdout is None:
        fraction = HOLDOUT_FRACTION if options.holdout_fraction is None else options.holdout_fraction
        used, held = split_off(data.rows, fraction, options.seed)
        if len(held):
            holdout = Rows(data.rows.X[held], data.rows.Y[held])
    _check_holdout(holdout, options, features_path)

    label = f"layer {options.layer}" if options.layer else "the layer"
    print(
        f"{label}: {l} classes, {q} features; {len(used)} rows for the statistics, "
        f"{0 if holdout is None else len(holdout.X)} held out",
        flush=True,
    )
    report, repaired = _repair(layer, data.rows, used, holdout, options)
    with new_files(list(targets.values()), replaced) as paths:
        for name, path in zip(targets, paths, strict=True):
            if name == "--report":
                _write_report(path, options, layer, report, len(used), holdout)
            elif name == "--figure":
                save_candidates(path, report, f"Repair of {label} in {checkpoint_path.name}")
            else:
                with path.open("wb") as file:
                    checkpoint.write(file, repaired)
    print(report.table())
    if report.chosen.method == "trained":
        print("\nno other head did better: the layer is as it was")
    if layer.shared:
        print(f"\nnot repaired, though they were the same memory: {', '.join(layer.shared)}")
    print(f"\ncheckpoint: {out}")
    return 0


# Arguments -------------------------------------------------------------------------------------------


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="lip-fast repair",
        description="Repair the last linear layer of a saved model from features and their labels, wrong "
        "ones among them, without training. A new checkpoint is written.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="safetensors file, or state dict (.pt, .pth)"
    )
    parser.add_argument(
        "--layer", required=True, metavar="NAME", help="the layer: prefix of NAME.weight and NAME.bias"
    )
    parser.add_argument(
        "--features",
        required=True,
        metavar="FILE",
        help=".npz or .safetensors: features (n, q), what the layer gets, and labels, (n,) class indices or "
        "(n, l); optional holdout_features and holdout_labels",
    )
    parser.add_argument(
        "--method", choices=METHODS, default="auto", help="default: auto, whichever does best"
    )
    parser.add_argument(
        "--parameters", nargs="+", metavar="P", help="candidates of the method to try; not with auto"
    )
    parser.add_argument(
        "--holdout-fraction",
        type=float,
        metavar="F",
        help="share of the labelled rows that choose among candidates where FILE has no hold-out; 0 for none "
        f"(default: {HOLDOUT_FRACTION})",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of that split (default: 0)")
    parser.add_argument("--out", metavar="PATH", help="the new checkpoint (default: CHECKPOINT-repaired)")
    parser.add_argument("--in-place", action="store_true", help="write over CHECKPOINT")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")
    parser.add_argument("--figure", metavar="PATH.png", help="draw the candidates and their scores")
    parser.add_argument("--report", metavar="PATH.json", help="write the candidates and their scores")
    options = parser.parse_all(arguments)
    _check_options(options)
    return options


def _check_options(options: argparse.Namespace) -> None:
    if options.in_place and options.out is not None:
        raise UserError(f"expected --in-place or --out, got both (--out {options.out})")
    if options.holdout_fraction is not None and not 0 <= options.holdout_fraction < 1:
        raise UserError(f"expected --holdout-fraction in [0, 1), got {options.holdout_fraction}")
    if options.seed < 0:
        raise UserError(f"expected --seed >= 0, got {options.seed}")
    for name, suffix in (("figure", ".png"), ("report", ".json")):
        path = getattr(options, name)
        if path is not None and Path(path).suffix.lower() != suffix:
            raise UserError(f"expected --{name} to end in {suffix}, got {path}")
    if options.parameters is not None:
        if options.method == "auto":
            raise UserError("expected no --parameters with --method auto, got some: name one method")
        # Penalties are real numbers, all else is counted.
        kind = float if options.method == "ridge" else int
        try:
            options.parameters = [kind(value) for value in options.parameters]
        except ValueError:
            expected = "numbers" if kind is float else "whole numbers"
            got = " ".join(options.parameters)
            raise UserError(f"expected --parameters of {options.method} as {expected}, got {got}") from None


def _out(options: argparse.Namespace, checkpoint: Path) -> Path:
    """Where the new checkpoint goes."""
    if options.in_place:
        return checkpoint
    if options.out is None:
        return checkpoint.with_name(f"{checkpoint.stem}-repaired{checkpoint.suffix}")
    suffixes = SAFETENSORS if checkpoint.suffix.lower() in SAFETENSORS else TORCH
    out = Path(options.out)
    if out.suffix.lower() not in suffixes:
        raise UserError(
            f"expected --out in the format of the checkpoint, ending in {' or '.join(suffixes)}, got {out}"
        )
    return out


def _check_holdout(holdout: Rows | None, options: argparse.Namespace, path: Path) -> None:
    if holdout is not None:
        if not len(holdout.labelled()):
            raise UserError(f"expected holdout_labels of {path} with at least one label, found none")
        return
    if options.method == "auto":
        raise UserError("expected a hold-out for --method auto, got --holdout-fraction 0")
    if options.figure is not None:
        raise UserError("expected a hold-out for --figure, got --holdout-fraction 0")


# The repair ------------------------------------------------------------------------------------------


def _repair(
    layer: Layer, rows: Rows, used: Tensor, holdout: Rows | None, options: argparse.Namespace
) -> tuple[RepairReport, Layer]:
    """The report, and the layer with the repaired tensors, in its own dtypes."""
    try:
        statistics = LabelStatistics(layer.weight.shape[1], layer.weight.shape[0])
        for X, Y in rows.blocks(used):
            statistics.update(X, Y)
        report = repair(_head(layer), statistics, options.method, holdout, parameters=options.parameters)
    # RuntimeError: a decomposition of numbers at the edge of their range does not converge.
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"the repair failed: {error}") from error
    if any(c.score is not None and not math.isfinite(c.score) for c in report.candidates):
        raise UserError("expected label weights whose mean is finite, found an overflow")
    bias = None if layer.bias is None else report.head.bias.detach().to(layer.bias.dtype)
    repaired = replace(layer, weight=report.head.weight.detach().to(layer.weight.dtype), bias=bias)
    for key, tensor in repaired.tensors().items():
        if not bool(torch.isfinite(tensor).all()):
            raise UserError(f"expected the repaired {key} to fit its dtype {tensor.dtype}, found an overflow")
    return report, repaired


def _head(layer: Layer) -> nn.Linear:
    l, q = layer.weight.shape
    dtype = layer.weight.dtype
    if layer.bias is not None:
        dtype = torch.promote_types(dtype, layer.bias.dtype)  # nn.Linear computes in one
    # Meta: no random numbers are drawn for what is replaced.
    head = nn.Linear(q, l, bias=layer.bias is not None, device="meta")
    head.weight = nn.Parameter(layer.weight.to(dtype), requires_grad=False)
    if layer.bias is not None:
        head.bias = nn.Parameter(layer.bias.to(dtype), requires_grad=False)
    return head


def _write_report(
    path: Path,
    options: argparse.Namespace,
    layer: Layer,
    report: RepairReport,
    rows: int,
    holdout: Rows | None,
) -> None:
    value = {
        "checkpoint": options.checkpoint,
        "layer": layer.name,
        "features": options.features,
        "method": options.method,
        "seed": options.seed,
        "rows": rows,
        "holdout_rows": 0 if holdout is None else len(holdout.X),
        "chosen": report.chosen._asdict(),
        "candidates": [candidate._asdict() for candidate in report.candidates],
    }
    write_json(path, value)
