"""A softmax head whose classes are spread over several processes, with LIP inside of AdamW.

Each process holds some rows of the head's weight and all of the backbone, and all see the same batches.
Labels are class indices among all classes everywhere: neither the loss nor LIP wants those of a process.

    torchrun --nproc-per-node=2 examples/sharded_head.py
"""

import os

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, loss_parallel, parallelize_module

from lip_fast.optim import LIPAdamW

CLASSES, INPUTS, FEATURES = 200, 32, 64
TRAINING, TEST, BATCH, EPOCHS = 4000, 1000, 100, 8

kind = "cuda" if torch.cuda.is_available() else "cpu"
if kind == "cuda":
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
dist.init_process_group("nccl" if kind == "cuda" else "gloo")
mesh = init_device_mesh(kind, (dist.get_world_size(),))

# A cluster for each class, and 40% of the training labels wrong; the same in each process.
g = torch.Generator().manual_seed(0)
centres = 1.5 * torch.randn(CLASSES, INPUTS, generator=g)
y = torch.randint(CLASSES, (TRAINING + TEST,), generator=g)
x = centres[y] + torch.randn(len(y), INPUTS, generator=g)
wrong = torch.rand(TRAINING, generator=g) < 0.4
noisy = torch.where(wrong, torch.randint(CLASSES, (TRAINING,), generator=g), y[:TRAINING])
x, y, noisy = x.to(kind), y.to(kind), noisy.to(kind)

torch.manual_seed(0)  # the backbone starts alike everywhere
backbone = nn.Sequential(nn.Linear(INPUTS, FEATURES), nn.ReLU()).to(kind)
head = nn.Linear(FEATURES, CLASSES).to(kind)
# Weight and bias become DTensors sharded by class, and so do the logits.
parallelize_module(head, mesh, ColwiseParallel(use_local_output=False))

optimizer = LIPAdamW(
    [
        {"params": backbone.parameters()},
        {"params": [head.bias]},
        # All see the same batch: no data_group. A fresh head has no spectrum yet: decide its rank later.
        {"params": [head.weight], "lip_rank": "auto", "lip_start": 80, "lip_decay": 0.98},
    ],
    lr=5e-3,
)
optimizer.watch(head)  # what it is called with

for _ in range(EPOCHS):
    for batch in torch.randperm(TRAINING, generator=g).to(kind).split(BATCH):
        with loss_parallel():  # cross entropy of sharded logits, which no process ever has whole
            nn.functional.cross_entropy(head(backbone(x[batch])), noisy[batch]).backward()
        optimizer.observe(head, noisy[batch])
        optimizer.step()  # AdamW, then LIP on all parts of the weight together
        optimizer.zero_grad()

with torch.no_grad():
    logits = head(backbone(x[TRAINING:])).full_tensor()  # of a few rows, to look at
right = (logits.argmax(1) == y[TRAINING:]).float().mean().item()
(stats,) = optimizer.lip.stats().values()
if dist.get_rank() == 0:
    print(f"{len(head.weight.to_local())} of {CLASSES} classes are in the first of {mesh.size()} processes")
    print(f"LIP of rank {stats['rank']}: applied {stats['applied']} times in {stats['steps']} steps")
    print(f"accuracy: {100 * right:.1f}%")
dist.destroy_process_group()
