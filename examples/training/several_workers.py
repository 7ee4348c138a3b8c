"""Two workers, the same bits
==========================

One training run, once in a single process and once on two workers that torchrun starts. The samples of a batch are
shared chunk by chunk, and gradients are added in one order, so that both runs end with the same parameters, to the last
bit. The run folder holds the course of the training, certified intervals of the loss and audits included.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

import learnreg as lr

options = "--updates 30 --batch-size 4 --chunk-size 2 --patch 24 --patches 64 --filters 6 --size 3 --minutes 10"
launchers = {
    "one process": [],
    "two workers": ["-m", "torch.distributed.run", "--nproc-per-node", "2"],
}
# One core for each worker; deterministic algorithms choose the same convolution kernels in all processes.
environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}

with tempfile.TemporaryDirectory() as folder:
    found = {}
    for name, launcher in launchers.items():
        out = Path(folder) / name.replace(" ", "-")
        command = [sys.executable, *launcher, "-m", "learnreg", "train", "denoise", *options.split(), "--out", str(out)]
        subprocess.run(command, env=environment, check=True, capture_output=True)
        found[name] = lr.load(out / "model.safetensors").regularizer.state_dict()
        print(f"{name}: {sum(p.numel() for p in found[name].values())} numbers learned")
    curve = lr.plot.learning_curve(out)

# %%
# The same bits.

first, second = found.values()
assert first.keys() == second.keys()
assert all(torch.equal(first[key], second[key]) for key in first)
