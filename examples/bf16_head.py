"""LIP on a head whose weight is bfloat16, without a float32 copy of it.

LIP decomposes and refits in float32 and rounds what it writes stochastically: to nearest, bfloat16 would lose
each change below 1/256 of a weight.

    python examples/bf16_head.py
"""

import torch
from torch import nn

import lip_fast

CLASSES, FEATURES = 100, 256

g = torch.Generator().manual_seed(0)
truth = torch.randn(CLASSES, FEATURES, generator=g)
torch.manual_seed(0)
head = nn.Linear(FEATURES, CLASSES, bias=False, dtype=torch.bfloat16)
optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3)

# A truncated form for many classes: the 64 leading directions are kept, the 16 below them refitted, and
# deeper ones left as they are. One warm-started power step each time: no full decomposition.
lip = lip_fast.LIP(head, rank=64, tail_rank=16, every=2)

# As a context manager the handle detaches LIP at the end of the block.
with lip.attach(optimizer):
    for step in range(60):
        features = torch.randn(128, FEATURES, generator=g).bfloat16()
        labels = (features.float() @ truth.mT).argmax(1)
        wrong = torch.rand(128, generator=g) < 0.3
        labels = torch.where(wrong, torch.randint(CLASSES, (128,), generator=g), labels)
        loss = nn.functional.cross_entropy(head(features).float(), labels)
        loss.backward()
        lip.observe(labels)
        optimizer.step()
        optimizer.zero_grad()
        if step % 20 == 19:
            print(f"step {step + 1}: loss {loss.item():.3f}")

stats = lip.stats()
print(
    f"the weight is {head.weight.dtype}, LIP was applied {stats['applied']} times of {stats['steps']} steps"
)
