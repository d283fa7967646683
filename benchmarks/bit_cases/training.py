"""Small networks in training, with LIP on their heads."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "BEHAVIOUR",
    "CORE",
    "DROP",
    "EXACT",
    "KEEP",
    "KERNELS",
    "OWN",
    "OWN_BEHAVIOUR",
    "PLUGIN_BEHAVIOUR",
    "STEPS",
    "TORCH",
    "Run",
    "gapped",
    "linear",
    "train",
]

STEPS = 20


# Plain optimizers of torch, with LIP as a plug-in.
TORCH: dict[str, tuple[str, dict[str, Any]]] = {
    "SGD": ("SGD", {"lr": 0.1}),
    "SGD-nesterov": ("SGD", {"lr": 0.05, "momentum": 0.9, "nesterov": True}),
    "Adam": ("Adam", {"lr": 0.01}),
    "AdamW": ("AdamW", {"lr": 0.01}),
    "AdamW-amsgrad": ("AdamW", {"lr": 0.01, "amsgrad": True}),
    "NAdam": ("NAdam", {"lr": 0.01}),
    "RAdam": ("RAdam", {"lr": 0.01}),
    "Adagrad": ("Adagrad", {"lr": 0.05}),
    "RMSprop": ("RMSprop", {"lr": 0.005, "momentum": 0.5}),
    "Adamax": ("Adamax", {"lr": 0.01}),
    "Adadelta": ("Adadelta", {"lr": 1.0}),
    "ASGD": ("ASGD", {"lr": 0.05}),
    "Rprop": ("Rprop", {"lr": 0.005}),
    "Adafactor": ("Adafactor", {"lr": 0.01}),
}
# Optimizers with LIP inside.
OWN: dict[str, tuple[str, dict[str, Any]]] = {
    "LIPSGD": ("LIPSGD", {"lr": 0.1}),
    "LIPSGD-momentum": (
        "LIPSGD",
        {"lr": 0.05, "momentum": 0.9, "dampening": 0.1, "weight_decay": 0.01},
    ),
    "LIPSGD-nesterov": ("LIPSGD", {"lr": 0.05, "momentum": 0.9, "nesterov": True}),
    "LIPAdamW": ("LIPAdamW", {"lr": 0.01}),
    "LIPAdamW-amsgrad": ("LIPAdamW", {"lr": 0.01, "amsgrad": True, "betas": (0.8, 0.95), "eps": 1e-3}),
}

EXACT: dict[str, Any] = {"rank": 6}
KEEP: dict[str, Any] = {"rank": 6, "tail_rank": 5}
DROP: dict[str, Any] = {"rank": 9, "tail_rank": 6, "rest": "drop"}
_GAPS = {3: "no gradient", 5: "no observation", 7: "features that are not finite", 9: "no learning rate"}
# What every optimizer is trained with.
CORE: dict[str, dict[str, Any]] = {
    "exact": {"lip": EXACT},
    "keep": {"lip": KEEP},
    "drop": {"lip": DROP},
    "keep-bfloat16": {"lip": KEEP, "dtype": torch.bfloat16},
    "keep-float64": {"lip": KEEP, "dtype": torch.float64},
    "decay": {"lip": KEEP | {"decay": 0.9}},
}
# Where kernels matter: shapes, numbers, labels, and what becomes of each direction.
KERNELS: dict[str, dict[str, Any]] = {
    **CORE,
    "exact-zero": {"lip": EXACT | {"tail": "zero"}},
    "exact-unclipped": {"lip": EXACT | {"clip": False}},
    "exact-decay": {"lip": EXACT | {"decay": 0.9}},
    "exact-bfloat16": {"lip": EXACT, "dtype": torch.bfloat16},
    "exact-float16": {"lip": EXACT, "dtype": torch.float16},
    "exact-float64": {"lip": EXACT, "dtype": torch.float64},
    "keep-zero": {"lip": KEEP | {"tail": "zero"}},
    "keep-unclipped": {"lip": KEEP | {"clip": False}},
    "keep-float16": {"lip": KEEP, "dtype": torch.float16},
    "drop-zero": {"lip": DROP | {"tail": "zero"}},
    "drop-float64": {"lip": DROP, "dtype": torch.float64},
    "drop-bfloat16": {"lip": DROP, "dtype": torch.bfloat16},
    "drop-decay": {"lip": DROP | {"decay": 0.9}},
    "decay-float64": {"lip": KEEP | {"decay": 0.9}, "dtype": torch.float64},
    "decay-bfloat16": {"lip": KEEP | {"decay": 0.9}, "dtype": torch.bfloat16},
    "decay-csr": {"lip": KEEP | {"decay": 0.9}, "labels": "csr"},
    "wide": {"lip": KEEP, "l": 24, "q": 40},
    "wide-exact": {"lip": EXACT, "l": 24, "q": 40},
    "square": {"lip": DROP, "l": 32, "q": 32},
    "large": {"lip": {"rank": 20, "tail_rank": 12}, "l": 60, "q": 96},
    "large-exact": {"lip": {"rank": 30}, "l": 60, "q": 96},
    "no-bias": {"lip": KEEP, "bias": False},
    "no-bias-exact": {"lip": EXACT, "bias": False},
    "unlabelled": {"lip": KEEP, "labels": "unlabelled"},
    "dense": {"lip": KEEP, "labels": "dense"},
    "dense-exact": {"lip": EXACT, "labels": "dense"},
    "csr": {"lip": KEEP, "labels": "csr"},
    "csr-exact": {"lip": EXACT, "labels": "csr"},
    "maximize": {"lip": KEEP, "maximize": True},
}
# Where they do not: when LIP acts, and on what.
BEHAVIOUR: dict[str, dict[str, Any]] = {
    "exact-scheduled": {"lip": EXACT | {"every": 3, "start": 4}},
    "keep-scheduled": {"lip": KEEP | {"every": 3, "start": 4}},
    "seed": {"lip": KEEP, "seed": 3, "dtype": torch.bfloat16},
    "strict": {"lip": KEEP, "strict": True},
    "rank-auto": {"lip": {"rank": "auto"}},
    "rank-auto-truncated": {"lip": {"rank": "auto", "tail_rank": 3}},
    "rank-fraction": {"lip": {"rank": 0.3}},
    "rank-0": {"lip": {"rank": 0}},
    "rank-all": {"lip": {"rank": 24}},
    "tail-0": {"lip": {"rank": 6, "tail_rank": 0}},
    "tail-limited": {"lip": {"rank": 20, "tail_rank": 10}},
    "coo": {"lip": KEEP, "labels": "coo"},
    "sequences": {"lip": KEEP, "labels": "sequences"},
    "micro-batches": {"lip": KEEP, "micro": 3},
    "micro-batches-exact": {"lip": EXACT, "micro": 3},
    "two-heads": {"lip": KEEP, "heads": 2},
    "closure": {"lip": KEEP, "closure": True},
    "tensor-lr": {"lip": KEEP, "lr": torch.tensor(0.01), "foreach": False},
    "gaps": {"lip": KEEP | {"decay": 0.9}, "events": _GAPS},
    "gaps-exact": {"lip": EXACT, "events": _GAPS},
    "scaled": {"lip": KEEP, "fused": True, "scaler": True, "events": {4: "overflow"}},
}
# Of the plug-in alone.
PLUGIN_BEHAVIOUR: dict[str, dict[str, Any]] = {
    "apply": {"lip": KEEP, "events": {4: "apply", 9: "apply"}},
    "reattached": {"lip": KEEP, "events": {5: "detach", 8: "attach"}},
}
# Of optimizers with LIP inside alone.
OWN_BEHAVIOUR: dict[str, dict[str, Any]] = {
    "skip-nonfinite": {"lip": KEEP, "skip_nonfinite": True, "events": {5: "infinite gradient"}},
    "skip-nonfinite-exact": {"lip": EXACT, "skip_nonfinite": True, "events": {5: "infinite gradient"}},
    "skip-nonfinite-scaled": BEHAVIOUR["scaled"] | {"skip_nonfinite": True},
    "named": {"lip": KEEP, "named": True},
    "copies": {"lip": KEEP, "events": {6: "copy"}},
    "settings-change": {
        "lip": KEEP,
        "events": {4: {"lip_every": 2}, 8: {"lip_rank": 4}, 12: {"lip_every": 1, "lip_clip": False}},
    },
}


class Run:
    """A small network in training, with LIP on its head.

    Args:
        maker: a key of ``TORCH`` or ``OWN``.
        lip: arguments of LIP.
        l: classes of the head.
        q: features of the head.
        dtype: of everything.
        bias: whether the head has one.
        labels: the form in which LIP sees them.
        micro: how many micro-batches a step has.
        heads: how many heads of the same form there are.
        closure: whether the optimizer calls the model.
        scaler: whether a gradient scaler takes the steps.
        named: whether the optimizer knows the names of its parameters.
        events: what happens at a step, by its number.
        options: arguments of the optimizer; and ``seed`` and ``strict``, of LIP.
    """

    def __init__(
        self,
        maker: str,
        *,
        lip: Mapping[str, Any],
        l: int = 40,
        q: int = 24,
        dtype: torch.dtype = torch.float32,
        bias: bool = True,
        labels: str = "indices",
        micro: int = 1,
        heads: int = 1,
        closure: bool = False,
        scaler: bool = False,
        named: bool = False,
        events: Mapping[int, Any] | None = None,
        **options: Any,
    ) -> None:
        random = torch.Generator().manual_seed(l * 1000 + q)
        inputs, rows = 16, 24
        self.model = nn.ModuleDict(
            {"body": linear(inputs, q, random, dtype=dtype)}
            | {f"head{i}": linear(q, l, random, dtype=dtype, bias=bias) for i in range(heads)}
        )
        self.heads: list[Any] = [self.model[f"head{i}"] for i in range(heads)]
        for head in self.heads:
            head.weight.data.copy_(gapped(l, q, random))
        self.x = torch.randn(STEPS, rows, inputs, generator=random).to(dtype)
        self.y = torch.randint(0, l, (STEPS, rows), generator=random)
        self.sets = (torch.rand(STEPS, rows, l, generator=random) < 0.15).float()
        self.labels, self.micro, self.closure = labels, micro, closure
        self.events = events or {}
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10) if scaler else None
        self.losses: list[Tensor] = []
        self._make(maker, lip, options, named)

    def _make(self, maker: str, lip: Mapping[str, Any], options: dict[str, Any], named: bool) -> None:
        """The optimizer, and LIP in it or beside it."""
        import lip_fast

        self.plugins: list[Any] = []
        if maker in TORCH:
            name, defaults = TORCH[maker]
            of_lip = {key: options.pop(key) for key in ("seed", "strict") if key in options}
            make: Any = getattr(torch.optim, name)
            self.optimizer: Any = make(self.model.parameters(), **(defaults | options))
            self.plugins = [lip_fast.LIP(head, **lip, **of_lip) for head in self.heads]
            self.handles = [plugin.attach(self.optimizer) for plugin in self.plugins]
            return
        weights = [head.weight for head in self.heads]
        mine = [(n, p) for n, p in self.model.named_parameters() if any(p is w for w in weights)]
        others = [(n, p) for n, p in self.model.named_parameters() if all(p is not w for w in weights)]
        settings = {f"lip_{key}": value for key, value in lip.items()}
        groups = [
            {"params": others if named else [p for _, p in others]},
            {"params": mine if named else [p for _, p in mine], **settings},
        ]
        name, defaults = OWN[maker]
        if name == "LIPAdamW" and self.x.dtype == torch.float16:
            # The usual 1e-8 is 0 there.
            defaults = defaults | {"eps": 1e-4}
        self.optimizer = getattr(lip_fast.optim, name)(groups, **(defaults | options))

    def steps(self, first: int = 0, last: int = STEPS) -> "Run":
        """Take the steps from ``first`` to before ``last``."""
        for i in range(first, last):
            self.step(i)
        return self

    def step(self, i: int) -> None:
        """Take step ``i``, with what happens at it."""
        event = self.events.get(i)
        before = [group["lr"] for group in self.optimizer.param_groups]
        if isinstance(event, dict):
            self.optimizer.param_groups[1].update(event)
        elif event == "copy":
            self._go_on_with_a_copy()
        elif event == "detach":
            for handle in self.handles:
                handle.remove()
        elif event == "attach":
            self.handles = [plugin.attach(self.optimizer) for plugin in self.plugins]
        elif event == "no learning rate":
            for group in self.optimizer.param_groups:
                group["lr"] = group["lr"] * 0
        if self.closure:
            self.optimizer.step(lambda: self.backward(i, event))
        else:
            self.backward(i, event)
            if event == "apply":
                for plugin in self.plugins:
                    plugin.apply()
            if self.scaler is None:
                self.optimizer.step()
            else:
                self.scaler.step(self.optimizer)
                self.scaler.update()
        for group, lr in zip(self.optimizer.param_groups, before, strict=True):
            group["lr"] = lr

    def _go_on_with_a_copy(self) -> None:
        self.model, self.optimizer = copy.deepcopy((self.model, self.optimizer))
        self.heads = [self.model[f"head{i}"] for i in range(len(self.heads))]

    def backward(self, i: int, event: Any = None) -> Tensor:
        """The gradients of a step, and what LIP is shown."""
        self.optimizer.zero_grad()
        total = torch.zeros(())
        for part in torch.arange(self.x.shape[1]).chunk(self.micro):
            y = self.y[i][part].clone()
            if self.labels == "unlabelled":
                y[::7] = -100
            features = torch.tanh(self.model["body"](self.x[i][part]))
            wide = torch.promote_types(features.dtype, torch.float32)
            logits = [head(features).to(wide) for head in self.heads]
            loss = torch.stack([nn.functional.cross_entropy(z, y) for z in logits]).sum() / self.micro
            if event == "overflow":
                loss = loss * torch.inf
            (loss if self.scaler is None else self.scaler.scale(loss)).backward()
            total = total + loss.detach()
            if event != "no observation":
                seen = features.detach().clone()
                if event == "features that are not finite":
                    seen[1, 2] = torch.nan
                self._observe(seen, y, self.sets[i][part])
        for head in self.heads:
            if event == "no gradient":
                head.weight.grad = None
            if event == "infinite gradient":
                head.weight.grad[0, 0] = torch.inf
        self.losses.append(total)
        return total

    def _observe(self, features: Tensor, y: Tensor, sets: Tensor) -> None:
        targets = y
        if self.labels == "sequences":
            features, targets = features.unflatten(0, (-1, 4)), y.unflatten(0, (-1, 4))
        elif self.labels in ("dense", "csr", "coo"):
            form: dict[str, Any] = {
                "dense": Tensor.clone,
                "csr": Tensor.to_sparse_csr,
                "coo": Tensor.to_sparse_coo,
            }
            targets = form[self.labels](sets)
        for i, head in enumerate(self.heads):
            if self.plugins:
                self.plugins[i].observe(features, targets)
            else:
                self.optimizer.observe(head, features, targets)

    @property
    def state(self) -> dict[str, Any]:
        """All that a checkpoint holds."""
        lip: Any = [p.state_dict() for p in self.plugins] or self.optimizer.lip.state_dict()
        model, optimizer = self.model.state_dict(), self.optimizer.state_dict()
        return {"model": dict(model), "optimizer": optimizer, "lip": lip}

    @property
    def result(self) -> dict[str, Any]:
        """All that came out."""
        stats: Any = [p.stats() for p in self.plugins] or self.optimizer.lip.stats()
        return self.state | {"stats": stats, "losses": self.losses}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what :attr:`state` was in another process."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.plugins:
            for plugin, saved in zip(self.plugins, state["lip"], strict=True):
                plugin.load_state_dict(saved)
        else:
            self.optimizer.lip.load_state_dict(state["lip"])


def linear(q: int, l: int, random: torch.Generator, *, dtype: torch.dtype, bias: bool = True) -> nn.Linear:
    """A linear layer of numbers drawn from a generator."""
    # Made without numbers: the constructor would draw them from the global random state.
    linear = nn.Linear(q, l, bias=bias, dtype=dtype, device="meta").to_empty(device="cpu")
    for p in linear.parameters():
        p.data.copy_(0.3 * torch.randn(p.shape, generator=random))
    return linear


def gapped(l: int, q: int, random: torch.Generator) -> Tensor:
    """A matrix whose singular values stand apart, of a size at which some refitted ones are clipped."""
    d = min(l, q)
    U = torch.linalg.qr(torch.randn(l, d, generator=random, dtype=torch.float64)).Q
    V = torch.linalg.qr(torch.randn(q, d, generator=random, dtype=torch.float64)).Q
    return U * (0.3 * 0.85 ** torch.arange(d, dtype=torch.float64)) @ V.mT


def train(maker: str, options: Mapping[str, Any], steps: int = STEPS) -> dict[str, Any]:
    """What comes out of a :class:`Run`.

    Args:
        maker: of the run.
        options: of the run.
        steps: how many it takes.
    """
    return Run(maker, **options).steps(0, steps).result
