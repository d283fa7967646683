"""The last layer of a saved checkpoint repaired in one shot, without training and without a clean label.

The command ``lip-fast repair`` does this with files of any size; here are its parts.

    python examples/repair_checkpoint.py [FOLDER]
"""

import sys
import tempfile
from pathlib import Path

import torch
from torch import nn

import lip_fast

CLASSES, INPUTS, FEATURES = 10, 32, 64

# Ten clusters, and half of the training labels wrong.
g = torch.Generator().manual_seed(0)
centres = 1.2 * torch.randn(CLASSES, INPUTS, generator=g)
y = torch.randint(CLASSES, (3000,), generator=g)
x = centres[y] + 1.5 * torch.randn(3000, INPUTS, generator=g)
wrong = torch.rand(2000, generator=g) < 0.5
noisy = torch.where(wrong, torch.randint(CLASSES, (2000,), generator=g), y[:2000])


class Classifier(nn.Module):
    """A backbone and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(INPUTS, FEATURES), nn.ReLU())
        self.head = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (n, CLASSES) of inputs (n, INPUTS)."""
        return self.head(self.backbone(x))


def accuracy(model: nn.Module) -> float:
    """On clean labels, in %."""
    with torch.no_grad():
        return 100 * (model(x[2000:]).argmax(1) == y[2000:]).float().mean().item()


# A network that has learned wrong labels, trained and saved by someone some time ago.
folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp())
torch.manual_seed(0)
model = Classifier()
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
for _ in range(40):
    for batch in torch.randperm(1600).split(100):
        nn.functional.cross_entropy(model(x[batch]), noisy[batch]).backward()
        optimizer.step()
        optimizer.zero_grad()
torch.save(model.state_dict(), folder / "model.pt")

# The repair. All that the head needs to know of the data is collected in one pass, in bounded memory.
model = Classifier()
model.load_state_dict(torch.load(folder / "model.pt", weights_only=True))
stats = lip_fast.LabelStatistics(FEATURES, CLASSES)
with torch.no_grad():
    for batch in torch.arange(1600).split(200):
        stats.update(model.backbone(x[batch]), noisy[batch])
    held_out = model.backbone(x[1600:2000]), noisy[1600:]  # wrong labels too

# LIP, ridge, principal components, truncation: whichever agrees best with the held-out labels.
report = lip_fast.repair(model.head, stats, "auto", holdout=held_out)
print(report.table())

print(f"as saved: {accuracy(model):.1f}%")
model.head = report.head
print(f"repaired: {accuracy(model):.1f}%")
torch.save(model.state_dict(), folder / "model-repaired.pt")  # a new file: the old one stays
print(f"written: {folder / 'model-repaired.pt'}")
