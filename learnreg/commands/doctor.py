"""What is installed, what the machine offers, and whether the core works here."""

from __future__ import annotations

import math
import platform
import re
import tempfile
from collections.abc import Iterator, Mapping
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import torch

from learnreg.hypergradients.compute import hypergradient
from learnreg.hypergradients.implicit import Implicit
from learnreg.losses import SquaredError
from learnreg.lower_level.problem import LowerLevelProblem
from learnreg.operators import Identity
from learnreg.regularizers import FieldsOfExperts
from learnreg.solvers.solve import solve
from learnreg.training.environment import cores, memory_gb, version_of

__all__ = ["describe_facts", "examine"]

_USER_EXTRAS = ("fast", "images", "ct", "odl")


def examine() -> dict[str, Any]:
    """Versions, optional packages, machine and a self-test of about a second; ``ok`` tells whether all is well.

    ``problems`` holds a sentence for everything that keeps learnreg from working; a missing optional package is none.
    """
    packages = _packages()
    writable = {folder: _is_writable(folder) for folder in _scratch_folders()}
    test = _self_test()
    problems = [
        f"{name} is missing. Install it with: pip install {name}"
        for name, found in packages.items()
        if found["version"] is None and found["extra"] is None
    ]
    problems += [f"{folder} is not writable." for folder, fits in writable.items() if not fits]
    problems += [] if test["ok"] else [f"the self-test failed: {test['reason']}"]
    return {
        "ok": not problems,
        "problems": problems,
        "learnreg": version_of("learnreg"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": _torch_facts(),
        "packages": packages,
        "cores": cores(),
        "memory_gb": memory_gb(),
        "writable": writable,
        "self_test": test,
    }


def describe_facts(facts: Mapping[str, Any]) -> list[str]:
    """What ``examine`` found, in lines for people."""
    torch_facts, test = facts["torch"], facts["self_test"]
    lines = [
        f"learnreg {facts['learnreg']}, Python {facts['python']}, {facts['platform']}",
        f"torch {torch_facts['version']}: {torch_facts['threads']} threads, BLAS {torch_facts['blas']}, "
        f"{torch_facts['cpu_capability']}, CUDA {torch_facts['cuda'] or 'none'}",
        f"{facts['cores']} cores, {facts['memory_gb']} GB of memory",
    ]
    for name, found in facts["packages"].items():
        hint = f" (pip install 'learnreg[{found['extra']}]')" if found["extra"] else ""
        lines.append(f"  {name}: {found['version'] or f'missing{hint}'}")
    lines += [f"  {folder}: {'writable' if fits else 'NOT writable'}" for folder, fits in facts["writable"].items()]
    lines.append(f"self-test: {'passed, certified' if test['ok'] else 'FAILED'}")
    return [*lines, *(f"problem: {problem}" for problem in facts["problems"])]


def _torch_facts() -> dict[str, Any]:
    blas = re.search(r"BLAS_INFO=(\w+)", torch.__config__.show())
    cuda = torch.cuda.is_available()
    return {
        "version": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "blas": blas.group(1) if blas else "unknown",
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cuda": torch.cuda.get_device_name(0) if cuda else None,
    }


def _packages() -> dict[str, dict[str, str | None]]:
    """Each requirement's version, None where it is missing, and the extra that installs it, None for a base one."""
    return {name: {"version": version_of(name), "extra": extra} for name, extra in _requirements()}


def _requirements() -> Iterator[tuple[str, str | None]]:
    for line in requires("learnreg") or []:
        name = re.match(r"[A-Za-z0-9._-]+", line)
        extra = re.search(r"""extra\s*==\s*["']([^"']+)["']""", line)
        if name is not None and name.group() != "learnreg" and (extra is None or extra.group(1) in _USER_EXTRAS):
            yield name.group(), None if extra is None else extra.group(1)


def _scratch_folders() -> list[str]:
    """The folder of temporary files, and the shared memory that workers of a data loader need."""
    shared = Path("/dev/shm")
    return [tempfile.gettempdir(), *([str(shared)] if shared.is_dir() else [])]


def _is_writable(folder: str) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"learnreg")
            file.flush()
    except OSError:
        return False
    return True


def _self_test() -> dict[str, Any]:
    """Solve a tiny problem and differentiate its solution, both certified."""
    generator = torch.Generator().manual_seed(0)
    x_true = torch.rand(1, 1, 16, 16, generator=generator)
    b = x_true + 0.1 * torch.randn(x_true.shape, generator=generator)
    try:
        problem = LowerLevelProblem(Identity((1, 16, 16)), FieldsOfExperts(filters=4, size=3))
        solution = solve(problem, b, tolerance=1e-4)
        found = hypergradient(problem, b, SquaredError(x_true), method=Implicit(), tolerance=1e-2)
    except Exception as error:  # whatever a broken installation raises is the answer
        return {"ok": False, "reason": f"{type(error).__name__}: {error}"}
    bound = found.relative_error_bound
    fits = solution.certified and solution.status.converged and found.certified and math.isfinite(bound)
    reason = "" if fits else f"solve: {solution.status.name}, hypergradient: {found.status.name} {found.reason}"
    return {
        "ok": fits,
        "reason": reason,
        "error_bound": float(solution.error_bound[0]),
        "hypergradient_error_bound": bound,
    }
