"""Two workers, the same bits
==========================

One training run, once in a single process and once on two workers that torchrun starts. The samples of a batch are
shared chunk by chunk, and gradients are added in one order, so that both runs end with the same parameters, to the last
bit.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

import learnreg as lr

# %%
# What every worker does: ``lr.train`` in a process group, with the same arguments everywhere. The first one writes.

WORKER = """
import json, os
import torch
import learnreg as lr
from learnreg.datasets import DenoisingPatches, natural_images
from learnreg.operators import Identity
from learnreg.regularizers import FieldsOfExperts

torch.use_deterministic_algorithms(True)  # or each process may take the convolution kernels that it finds the fastest
if "RANK" in os.environ:
    torch.distributed.init_process_group("gloo")
pairs = DenoisingPatches(natural_images("train"), sigma=25 / 255, patch=24, count=64)
torch.manual_seed(0)
problem = lr.LowerLevelProblem(Identity((1, 24, 24)), FieldsOfExperts(filters=8, size=3))
run = lr.train(problem, pairs, updates=20, batch_size=4, chunk_size=2, progress=False)
if os.environ.get("RANK", "0") == "0":
    torch.save(problem.regularizer.state_dict(), os.environ["OUT"] + ".pt")
    open(os.environ["OUT"] + ".json", "w").write(json.dumps(run.rows))
"""
launchers = {"one process": [], "two workers": ["-m", "torch.distributed.run", "--nproc-per-node", "2"]}
environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "lo"}

parameters, rows = {}, {}
with tempfile.TemporaryDirectory() as folder:
    script = Path(folder) / "worker.py"
    script.write_text(WORKER)
    for name, launcher in launchers.items():
        out = Path(folder) / name.replace(" ", "-")
        command = [sys.executable, *launcher, str(script)]
        done = subprocess.run(
            command, env={**environment, "OUT": str(out)}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
        parameters[name] = torch.load(out.with_suffix(".pt"), weights_only=True)
        rows[name] = json.loads(out.with_suffix(".json").read_text())
        print(f"{name}: loss {rows[name][0]['loss']:.3f} -> {rows[name][-1]['loss']:.3f}")

# %%
# The same bits.

first, second = parameters.values()
assert first.keys() == second.keys()
assert all(torch.equal(first[key], second[key]) for key in first)
print(f"{sum(p.numel() for p in first.values())} numbers are equal")

# %%
# The course of the run of two workers: the loss of each batch, and audits, which bound the error of hypergradients.

curve = lr.plot.learning_curve(rows["two workers"])
