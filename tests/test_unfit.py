"""Heads that LIP cannot act on: refused where LIP is made, with what to pass in their place."""

import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import lip_fast

Q, L = 20, 12


@pytest.fixture(autouse=True)
def _own_random_state() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        yield


class LoRA(nn.Module):
    """A linear layer as peft wraps it: trained matrices beside a frozen weight that it hands on."""

    def __init__(self) -> None:
        super().__init__()
        self.base_layer = nn.Linear(Q, L).requires_grad_(False)
        self.lora_A, self.lora_B = nn.Linear(Q, 2, bias=False), nn.Linear(2, L, bias=False)

    @property
    def weight(self) -> torch.Tensor:
        return self.base_layer.weight


def _old_weight_norm() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.utils.weight_norm(nn.Linear(Q, L))


def _int8() -> nn.Module:
    """A weight of codes, as bitsandbytes has it."""
    head = nn.Linear(Q, L)
    head.weight = nn.Parameter(torch.zeros(L, Q, dtype=torch.int8), requires_grad=False)
    return head


def _torchao() -> nn.Module:
    torchao = pytest.importorskip("torchao.quantization", reason="needs torchao, of the extra 'dev'")
    model = nn.Sequential(nn.Linear(Q, L))
    torchao.quantize_(model, torchao.Int8WeightOnlyConfig())
    return model[0]


def _deep() -> nn.Module:
    return nn.Sequential(nn.Linear(Q, Q), nn.Tanh(), nn.Dropout(), nn.Linear(Q, L))


def _many() -> nn.Module:
    return nn.Sequential(*[nn.Linear(Q, Q) for _ in range(5)])


HEADS: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "parametrized": (
        lambda: parametrizations.weight_norm(nn.Linear(Q, L)),
        TypeError,
        r"whose weight is computed by a parametrization.*remove_parametrizations\(head, 'weight'\)",
    ),
    "orthogonal": (
        lambda: parametrizations.orthogonal(nn.Linear(Q, L)),
        TypeError,
        "whose weight is computed",
    ),
    "weight norm": (_old_weight_norm, TypeError, "whose weight is computed from others"),
    "LoRA": (LoRA, TypeError, "trains matrices beside the weight of its base_layer.*modules_to_save"),
    "int8": (_int8, TypeError, "int8: a quantized weight cannot be refitted"),
    "torchao": (
        _torchao,
        TypeError,
        "quantized, it cannot be refitted|a quantized weight cannot be refitted",
    ),
    "convolution": (lambda: nn.Conv2d(Q, L, 1), TypeError, "nn.Linear on flattened features does the same"),
    "large convolution": (lambda: nn.Conv2d(Q, L, 3), TypeError, "expected a head with a 2-D weight.*Conv2d"),
    "sequential": (_deep, TypeError, r"pass the nn.Linear inside that makes the logits \('0', '3'\)"),
    "many": (_many, TypeError, r"makes the logits \(..., '2', '3', '4'\)"),
    "lazy": (lambda: nn.LazyLinear(L), ValueError, "without a shape yet: call the model on a batch first"),
    "meta": (lambda: nn.Linear(Q, L, device="meta"), ValueError, "materialize the model first"),
    "weight": (lambda: nn.Linear(Q, L).weight, TypeError, "got its weight.*pass the module"),
    "norm": (lambda: nn.LayerNorm(Q), TypeError, "expected a head with a 2-D weight.*LayerNorm"),
    "nothing": (lambda: None, TypeError, "expected a head with a 2-D weight"),
    "function": (lambda: nn.functional.linear, TypeError, "expected a head with a 2-D weight.*function"),
}


@pytest.mark.parametrize(("make", "error", "message"), HEADS.values(), ids=HEADS)
def test_a_head_that_does_not_fit_is_refused_with_advice(
    make: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"(?s){message}"):
        lip_fast.LIP(make(), 4)


@pytest.mark.parametrize("name", ["int8", "torchao", "weight norm"])
def test_an_optimizer_with_lip_refuses_its_weight(name: str) -> None:
    weight = HEADS[name][0]().weight
    with pytest.raises((ValueError, TypeError)):
        lip_fast.optim.LIPSGD([{"params": [weight], "lip_rank": 4}], lr=0.1)


def test_the_head_that_is_trained_beside_an_adapter_is_taken() -> None:
    """As peft's modules_to_save has it: a wrapper that hands on the weight of the copy that is trained."""

    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trained = nn.Linear(Q, L, bias=False)

        @property
        def weight(self) -> torch.Tensor:
            return self.trained.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.trained(x)

    wrapper = Wrapper()
    optimizer = torch.optim.SGD(wrapper.parameters(), lr=0.1)
    lip = lip_fast.LIP(wrapper, 4, tail_rank=4)
    lip.attach(optimizer)
    wrapper(torch.randn(8, Q)).square().sum().backward()
    lip.observe(torch.arange(8))
    optimizer.step()
    assert lip.stats()["applied"] == 1
