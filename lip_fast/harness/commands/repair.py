"""``lip-fast repair``: the last layer of a saved model repaired from label statistics, without training."""

import argparse
import math
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from lip_fast.cli.errors import UserError
from lip_fast.cli.parser import Parser
from lip_fast.harness.algorithms.features import label_weights
from lip_fast.harness.files.outputs import check_outputs, new_files, new_folder
from lip_fast.harness.files.plain import write_json
from lip_fast.harness.noise.labels import listed, span
from lip_fast.harness.repairs.checkpoints import INDEX, SAFETENSORS, TORCH, find_checkpoint, read_checkpoint
from lip_fast.harness.repairs.features import RepairData, Rows, read_features, split_off
from lip_fast.harness.repairs.figures import save_candidates
from lip_fast.harness.repairs.layers import Layer
from lip_fast.harness.training.processes import refuse_several
from lip_fast.linear_path import LinearWeight
from lip_fast.repair import ERRORS, GAUSSIAN, METHODS, RepairReport, repair
from lip_fast.statistics import LabelStatistics

__all__ = ["main"]

# Methods that have a grid of parameters and no rule of their own to take one.
_TO_CHOOSE = ("gaussian-path", "ridge", "pcr", "truncate")
# Those whose parameters are penalties; all else is counted.
_PENALISED = ("gaussian", "gaussian+trained", "gaussian-path", "ridge")


def main(arguments: Sequence[str]) -> int:
    """Repair a layer, print the report, write the new checkpoint; returns the exit code 0.

    Raises:
        UserError: arguments or files are not what they must be; nothing has been written then.
    """
    refuse_several()
    options = _parse(arguments)
    # Before the outputs: a missing input is the likelier mistake.
    checkpoint_path = find_checkpoint(Path(options.checkpoint))
    inputs = {"the features": Path(options.features)}
    if options.holdout is not None:
        inputs["the hold-out"] = Path(options.holdout)
    for path in inputs.values():
        if not os.path.isfile(path):
            raise UserError(f"expected a file of features, found no file at {path}")
    sharded = checkpoint_path.name.endswith(INDEX)
    out = _out(options, checkpoint_path)
    outputs = {"--report": options.report, "--figure": options.figure}
    targets = {name: Path(path) for name, path in outputs.items() if path is not None}
    replaced = list(targets.values()) if options.overwrite else []
    if not sharded:
        targets["--out"] = out
        replaced += [out] if options.in_place or options.overwrite else []
    if sharded or not options.in_place:
        inputs["the checkpoint (--in-place writes over it)"] = checkpoint_path
    check_outputs(targets, inputs, replaced)

    checkpoint = read_checkpoint(checkpoint_path)
    layer = checkpoint.layer(options.layer)
    l, q = layer.weight.shape
    if layer.bias is None and options.method in GAUSSIAN:
        others = ", ".join(method for method in METHODS if method not in GAUSSIAN)
        raise UserError(
            f"expected a layer with a bias for --method {options.method}, found {layer.full_name} without: "
            f"the model could not load one; --method {others} need none"
        )
    data = read_features(Path(options.features), q=q, l=l)
    used, holdout = _split(data, options, q=q, l=l)
    _check_choice(holdout, options)

    label = f"layer {layer.full_name}" if layer.full_name else "the layer"
    print(
        f"{label}: {l} classes, {q} features; {len(used)} rows for the statistics, "
        f"{0 if holdout is None else len(holdout.X)} held out",
        flush=True,
    )
    if data.rows.Y.dim() == 1:
        _tell_counts(data.rows.Y[used], l)
    report, repaired = _repair(layer, data.rows, used, holdout, options)
    changed = checkpoint.files(repaired)
    if not sharded:
        (write,) = changed.values()
        changed = {out: write}
    elif options.in_place:
        replaced += list(changed)
    writers = {} if sharded and not options.in_place else {p: _opening(write) for p, write in changed.items()}
    if options.report is not None:
        value = _report(options, layer, report, len(used), holdout)
        writers[targets["--report"]] = partial(write_json, value=value)
    if options.figure is not None:
        title = f"Repair of {label} in {checkpoint_path.name}"
        writers[targets["--figure"]] = partial(save_candidates, report=report, title=title)
    with new_files(list(writers), replaced) as paths:
        for write_to, path in zip(writers.values(), paths, strict=True):
            write_to(path)
        if sharded and not options.in_place:
            _write_folder(out, checkpoint_path.parent, changed)
    print(report.table())
    if options.method == "auto" and holdout is not None:
        print(f"\nanother head than the Gaussian one has to be better by more than {ERRORS} standard errors")
    if report.chosen.method == "trained":
        print("\nno other head did better: the layer is as it was")
    if layer.shared:
        print(f"\nnot repaired, though they were the same memory: {', '.join(layer.shared)}")
    print(f"\ncheckpoint: {out}")
    return 0


def _tell_counts(labels: Tensor, l: int) -> None:
    counts = labels.bincount(minlength=l).numpy()
    print(f"{span(counts)} rows a class", flush=True)
    empty = (counts == 0).nonzero()[0]
    if len(empty):
        print(
            f"lip-fast repair: no labelled row of {len(empty)} of {l} classes: {listed(empty)}; classes are "
            "numbered from 0",
            file=sys.stderr,
        )


def _opening(write: Callable[[BinaryIO], None]) -> Callable[[Path], None]:
    def write_to(path: Path) -> None:
        with path.open("wb") as file:
            write(file)

    return write_to


def _write_folder(out: Path, source: Path, changed: Mapping[Path, Callable[[BinaryIO], None]]) -> None:
    """Copy the files of a folder, those below it left out, with the changed ones in the place of the old."""
    with new_folder(out) as folder:
        for path in source.iterdir():
            if path in changed:
                _opening(changed[path])(folder / path.name)
            elif path.is_file():
                shutil.copy(path, folder / path.name)


# Arguments -------------------------------------------------------------------------------------------


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="lip-fast repair",
        description="Repair the last linear layer of a saved model from features and their labels, wrong "
        "ones among them, without training. A new checkpoint is written.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="safetensors file, the index of several (*.safetensors.index.json), state dict (.pt, .pth), or "
        "the folder of one",
    )
    parser.add_argument(
        "--layer", required=True, metavar="NAME", help="the layer: prefix of NAME.weight and NAME.bias"
    )
    parser.add_argument(
        "--features",
        required=True,
        metavar="FILE",
        help=".npz or .safetensors: features (n, q), what the layer gets, and labels, (n,) class indices or "
        "(n, l); optional holdout_features and holdout_labels, see --holdout",
    )
    parser.add_argument(
        "--holdout",
        metavar="FILE",
        help="a file with features and labels of samples that the network was not trained on; they choose "
        "among methods and parameters",
    )
    parser.add_argument(
        "--method",
        choices=METHODS,
        default="auto",
        help="default: auto, the Gaussian head, or another one where the hold-out says that it is better by "
        "two standard errors. A layer without a bias takes ridge, pcr, lip or truncate alone",
    )
    parser.add_argument(
        "--parameters",
        nargs="+",
        metavar="P",
        help="candidates of the method to try, not with auto: numbers of directions, penalties of ridge, or "
        "of Gaussian heads in mean eigenvalues of the features' scatter",
    )
    parser.add_argument(
        "--noise-rate",
        type=float,
        metavar="R",
        help="share of the labels that Gaussian heads take for replaced by random ones, in [0, 1) (default: "
        "0; gaussian-path tries 0, 0.3 and 0.5)",
    )
    parser.add_argument(
        "--holdout-fraction",
        type=float,
        metavar="F",
        help="share of the labelled rows of --features to hold out; for features of samples that the network "
        "was not trained on, none of them (default: 0)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of that split (default: 0)")
    parser.add_argument(
        "--out",
        metavar="PATH",
        help="the new checkpoint, of several files its folder (default: CHECKPOINT-repaired)",
    )
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
    if options.noise_rate is not None:
        if not 0 <= options.noise_rate < 1:
            raise UserError(f"expected --noise-rate in [0, 1), got {options.noise_rate}")
        if options.method not in GAUSSIAN:
            raise UserError(
                f"expected --noise-rate with --method {', '.join(GAUSSIAN)}, got {options.method}"
            )
    if options.parameters is not None:
        if options.method == "auto":
            raise UserError("expected no --parameters with --method auto, got some: name one method")
        kind = float if options.method in _PENALISED else int
        try:
            options.parameters = [kind(value) for value in options.parameters]
        except ValueError:
            expected = "numbers" if kind is float else "whole numbers"
            got = " ".join(options.parameters)
            raise UserError(f"expected --parameters of {options.method} as {expected}, got {got}") from None


def _out(options: argparse.Namespace, checkpoint: Path) -> Path:
    """Where the new checkpoint goes: a file, or for several files with an index their folder."""
    if checkpoint.name.endswith(INDEX):
        folder = checkpoint.parent.resolve()
        if options.in_place:
            return checkpoint.parent
        out = folder.with_name(f"{folder.name}-repaired") if options.out is None else Path(options.out)
        if os.path.lexists(out):
            raise UserError(
                f"expected --out to be a new folder, for {checkpoint} has several files, found {out}"
            )
        if not os.path.isdir(out.resolve().parent):
            raise UserError(f"expected --out in a folder that is there, found none at {out.resolve().parent}")
        return out
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


# The hold-out ----------------------------------------------------------------------------------------

# Labels of samples that a network was trained on agree best with that network, however wrong they are: no
# part of those may choose, and only the user knows which they are.
_ADVICE = (
    "add features and labels of samples that the network was not trained on (--holdout FILE, or "
    "holdout_features and holdout_labels in --features; where it was trained on no row of --features, "
    "--holdout-fraction 0.2)"
)


def _split(data: RepairData, options: argparse.Namespace, *, q: int, l: int) -> tuple[Tensor, Rows | None]:
    """The rows for the statistics, and the hold-out."""
    given = {
        "--holdout": options.holdout,
        "--holdout-fraction": options.holdout_fraction,
        "holdout_features": None if data.holdout is None else options.features,
    }
    given = {name: value for name, value in given.items() if value is not None}
    if len(given) > 1:
        listed = ", ".join(f"{name} {value}" for name, value in given.items())
        raise UserError(f"expected one hold-out, got {listed}")
    if options.holdout_fraction:
        used, held = split_off(data.rows, options.holdout_fraction, options.seed)
        return used, Rows(data.rows.X[held], data.rows.Y[held])
    used, _ = split_off(data.rows, 0.0, options.seed)
    if options.holdout is None:
        return used, data.holdout
    holdout = read_features(Path(options.holdout), q=q, l=l).rows
    if torch.equal(holdout.X, data.rows.X):
        raise UserError(
            f"expected other samples in --holdout than in --features, found the same: {options.holdout}"
        )
    return used, holdout


def _check_choice(holdout: Rows | None, options: argparse.Namespace) -> None:
    """Refuse a choice without anything to choose by."""
    if holdout is not None:
        if not len(holdout.labelled()):
            path = options.features if options.holdout is None else options.holdout
            raise UserError(f"expected labels of the hold-out in {path} with at least one label, found none")
        return
    if options.figure is not None:
        raise UserError(f"expected a hold-out for --figure, got none: {_ADVICE}")
    tried = len(options.parameters or ())
    if options.method == "gaussian-path" and options.noise_rate is None:
        # At several rates of noise.
        raise UserError(
            "expected a hold-out for gaussian-path, or --noise-rate and one of --parameters, got none: "
            f"{_ADVICE}"
        )
    if tried > 1 or (not tried and options.method in _TO_CHOOSE):
        got = "a grid of them" if not tried else f"{tried}"
        raise UserError(
            f"expected a hold-out to choose among --parameters of {options.method}, got none and {got}: "
            f"{_ADVICE}; or give one of --parameters"
        )


# The repair ------------------------------------------------------------------------------------------


def _repair(
    layer: Layer, rows: Rows, used: Tensor, holdout: Rows | None, options: argparse.Namespace
) -> tuple[RepairReport, Layer]:
    """The report, and the layer with the repaired tensors, in its own dtypes."""
    try:
        statistics = LabelStatistics(layer.weight.shape[1], layer.weight.shape[0])
        for X, Y in rows.blocks(used):
            statistics.update(X, label_weights(Y) if options.method in GAUSSIAN else Y)
        report = repair(
            _head(layer),
            statistics,
            options.method,
            holdout,
            parameters=options.parameters,
            noise_rate=options.noise_rate,
        )
    # RuntimeError: a decomposition of numbers at the edge of their range does not converge.
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"the repair failed: {error}") from error
    if any(c.score is not None and not math.isfinite(c.score) for c in report.candidates):
        raise UserError("expected label weights whose mean is finite, found an overflow")
    head = report.head
    bias = None
    if layer.bias is not None:
        bias = LinearWeight(head.weight.detach(), head.bias.detach()).to(layer.bias.dtype).bias
    repaired = replace(layer, weight=head.weight.detach().to(layer.weight.dtype), bias=bias)
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


def _report(
    options: argparse.Namespace, layer: Layer, report: RepairReport, rows: int, holdout: Rows | None
) -> dict[str, Any]:
    return {
        "checkpoint": options.checkpoint,
        "layer": layer.full_name,
        "features": options.features,
        "holdout": options.holdout,
        "method": options.method,
        "seed": options.seed,
        "rows": rows,
        "holdout_rows": 0 if holdout is None else len(holdout.X),
        "chosen": report.chosen._asdict(),
        "candidates": [candidate._asdict() for candidate in report.candidates],
    }
