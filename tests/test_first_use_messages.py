"""What is passed in the first week, and what is said of it: each message names the way out."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from problems import linear
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import lip_fast
from lip_fast import LabelStatistics, lip, lip_path, randomized_svd, repair, select_rank

Q, L, N = 7, 4, 40
_G = torch.Generator().manual_seed(0)
X = torch.randn(N, Q, generator=_G)
y = torch.randint(0, L, (N,), generator=_G)
HEAD = linear(Q, L, bias=True)
W = HEAD.weight.detach().mT


class _Dicts(Dataset[dict[str, torch.Tensor]]):
    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        return {"features": X[i], "labels": y[i]}


def _loader(*tensors: torch.Tensor, data: Any = None) -> DataLoader:
    return DataLoader(data or TensorDataset(*tensors), batch_size=8, generator=torch.Generator())


def _update(*arguments: Any) -> LabelStatistics:
    return LabelStatistics(Q, L).update(*arguments)


STATS = _update(X, y)
ONE_HOT = nn.functional.one_hot(y, L)
IMAGES = torch.zeros(N, 1, 28, 28)

MESSAGES: dict[str, tuple[Callable[[], object], type, str]] = {
    "rows with their index": (
        lambda: _update(_loader(X, y, y)),
        TypeError,
        r"batch 0 as a pair .* got 3 values: pass \(\(x, y\) for x, y, \*_ in loader\)",
    ),
    "lip of rows with their index": (lambda: lip(W, _loader(X, y, y), k=2), TypeError, "got 3 values: pass"),
    "dicts": (
        lambda: _update(_loader(data=_Dicts())),
        TypeError,
        r"the keys 'features', 'labels': pass \(\(batch\[FEATURES\]",
    ),
    "lip of dicts": (lambda: lip(W, _loader(data=_Dicts()), k=2), TypeError, "the keys 'features', 'labels'"),
    "a dict": (lambda: _update({"features": X, "labels": y}), TypeError, "or an iterable of pairs .* dict"),
    "a dataset": (lambda: _update(TensorDataset(X, y)), TypeError, "pass a DataLoader of it"),
    "both in one tuple": (lambda: _update((X, y)), TypeError, "pass features and labels as two arguments"),
    # Unpacked, a tensor of two rows would be taken for features and labels.
    "a batch of two rows": (lambda: _update([X[:2]]), TypeError, r"batch 0 as a pair .* shape \(2, 7\)"),
    "nothing": (lambda: _update(None), TypeError, "got NoneType"),
    "an array alone": (lambda: _update(X.numpy()), TypeError, "expected labels with the features"),
    "images": (lambda: _update(IMAGES, y), ValueError, "are the input of the last layer, not of the network"),
    "images for lip": (lambda: lip(W, IMAGES, y, 2), ValueError, "the input of the last layer"),
    "images held out": (
        lambda: repair(HEAD, STATS, "ridge", (IMAGES, y)),
        ValueError,
        "the input of the last layer",
    ),
    "sequences": (lambda: _update(torch.zeros(8, 5, Q), y[:8]), ValueError, r"pass X.flatten\(0, -2\)"),
    "one row": (lambda: _update(X[0], y[:1]), ValueError, r"pass X\[None\]"),
    "token ids": (lambda: _update(torch.zeros(N, Q).long(), y), TypeError, "the input of the last layer"),
    "arrays": (lambda: _update(X.numpy(), y.numpy()), TypeError, "ndarray: pass torch.as_tensor"),
    "a list of labels": (lambda: _update(X, y.tolist()), TypeError, r"list: pass torch.as_tensor\(labels\)"),
    "float labels": (
        lambda: _update(X, y.float()),
        TypeError,
        r"soft labels are a matrix .* labels.long",
    ),
    "int32 labels": (lambda: _update(X, y.int()), TypeError, r"int64, got torch.int32: .* labels.long\(\)"),
    "labels in a column": (lambda: _update(X, y[:, None]), ValueError, r"labels.squeeze\(1\)"),
    "labels elsewhere": (lambda: _update(X, y.to("meta")), ValueError, "labels on cpu, where the features"),
    "a label matrix elsewhere": (lambda: _update(X, ONE_HOT.to("meta")), ValueError, "labels on cpu"),
    "no label": (lambda: lip(W, X, torch.full((N,), -100), 2), ValueError, "at least one row with a label"),
    "the weight as the layer has it": (lambda: lip(W.mT, X, y, 2), ValueError, "pass W as linear.weight.T"),
    "a k of numpy": (lambda: lip(W, X, y, np.int64(2)), TypeError, r"got int64: pass int\(k\)"),
    "one k": (lambda: lip_path(W, X, y, 3), TypeError, r"ks as a list, got int 3: pass \[ks\]"),
    "one alpha": (lambda: STATS.ridge_path(1.0), TypeError, "alphas as a list, got float 1.0"),
    "one number of components": (lambda: STATS.pcr_path(3), TypeError, "components as a list, got int 3"),
    "one parameter": (
        lambda: repair(HEAD, STATS, "ridge", parameters=1.0),
        TypeError,
        "parameters as a list, got float",
    ),
    "a decay as text": (lambda: LabelStatistics(Q, L, decay="0.9"), TypeError, "decay as a number .* '0.9'"),
    "a layer for its weight": (lambda: LabelStatistics.for_head(HEAD), TypeError, "Linear: pass its weight"),
    "an empty state": (lambda: _update(X, y).load_state_dict({}), ValueError, "state of LabelStatistics"),
    "another state": (
        lambda: _update(X, y).load_state_dict(HEAD.state_dict()),
        ValueError,
        "got the keys 'weight', 'bias', without C, G, rounding",
    ),
    "a network to repair": (
        lambda: repair(nn.Sequential(HEAD), STATS),
        TypeError,
        "Sequential: pass its last layer",
    ),
    "rows for statistics": (lambda: repair(HEAD, (X, y)), TypeError, r"pass LabelStatistics.for_head"),
    "a lazy head": (
        lambda: repair(nn.LazyLinear(L), STATS),
        (ValueError, RuntimeError),
        "a lazy one that has seen no input",
    ),
    "a loader held out": (
        lambda: repair(HEAD, STATS, "ridge", _loader(X, y)),
        TypeError,
        "as a pair .* of tensors, got DataLoader",
    ),
    "a matrix for its values": (lambda: select_rank(W), TypeError, r"pass torch.linalg.svdvals\(M\)"),
    "a shape of one number": (
        lambda: select_rank(torch.ones(3), method="gavish-donoho", shape=3),
        ValueError,
        r"the \(rows, columns\) of a matrix, got 3",
    ),
    "an array to decompose": (lambda: randomized_svd(X.numpy(), 2), TypeError, "M as a torch.Tensor"),
}


@pytest.mark.filterwarnings("ignore:Lazy modules:UserWarning")
@pytest.mark.parametrize("case", MESSAGES)
def test_what_is_said(case: str) -> None:
    work, error, message = MESSAGES[case]
    with pytest.raises(error, match=message):
        work()


def _batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for i in range(0, N, 8):
        yield X[i : i + 8], y[i : i + 8]


def test_what_works() -> None:
    expected = STATS.G
    for stats in (
        _update(_loader(X, y)),
        _update(_batches()),
        _update([[X, y]]),
        _update(X, ONE_HOT),
        _update(X, ONE_HOT.bool()),
        _update(X.clone().requires_grad_(), y),
    ):
        assert torch.allclose(stats.G, expected, rtol=1e-5)
    for alphas in ([1.0], (1,), torch.tensor([1.0]), np.array([1.0])):
        assert torch.equal(STATS.ridge_path(alphas)[0].M, STATS.ridge_path([1.0])[0].M)
    for weight in (HEAD.weight.T, W.half()):
        assert lip(weight, X.to(weight.dtype), y, 2).dtype == weight.dtype
    assert lip_fast.randomized_svd(HEAD.weight, 2)[1].shape == (2,)
