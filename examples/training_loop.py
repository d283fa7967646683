"""LIP in a plain training loop: four lines beside those that are there anyway.

It shows how, not how much: on a task as small as this, plain training withstands wrong labels as well.
What LIP and repair gain on real data is in README's table.

    python examples/training_loop.py
"""

import torch
from torch import nn

import lip_fast

CLASSES, INPUTS, FEATURES = 10, 32, 64

# Ten clusters, and 40% of the training labels wrong.
g = torch.Generator().manual_seed(0)
centres = 1.2 * torch.randn(CLASSES, INPUTS, generator=g)
y = torch.randint(CLASSES, (3000,), generator=g)
x = centres[y] + 1.5 * torch.randn(3000, INPUTS, generator=g)
wrong = torch.rand(2000, generator=g) < 0.4
noisy = torch.where(wrong, torch.randint(CLASSES, (2000,), generator=g), y[:2000])


def train(use_lip: bool) -> float:
    """Train a small network on the wrong labels; returns its accuracy in % on clean ones."""
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Linear(INPUTS, FEATURES), nn.ReLU(), nn.Linear(FEATURES, FEATURES), nn.ReLU())
    head = nn.Linear(FEATURES, CLASSES)
    optimizer = torch.optim.AdamW([*backbone.parameters(), *head.parameters()], lr=2e-3)

    if use_lip:
        # Keep the eight leading directions of the head, refit the others to the labels after each step.
        lip = lip_fast.LIP(head, rank=8, decay=0.98)
        lip.attach(optimizer)

    for _ in range(20):
        for batch in torch.randperm(2000).split(100):
            loss = nn.functional.cross_entropy(head(backbone(x[batch])), noisy[batch])
            loss.backward()
            if use_lip:
                lip.observe(noisy[batch])  # the labels of what the head was just called with
            optimizer.step()  # the base step, then LIP
            optimizer.zero_grad()

    if use_lip:
        print("what LIP did:", lip.stats())
    with torch.no_grad():
        right = head(backbone(x[2000:])).argmax(1) == y[2000:]
    return 100 * right.float().mean().item()


print(f"plain: {train(False):.1f}%")
print(f"LIP in the step: {train(True):.1f}%")
