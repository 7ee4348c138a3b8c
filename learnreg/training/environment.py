"""What made a result: versions, commit, machine and threads; the same for equal runs on one machine, and nothing that
names who ran them."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any

import torch

__all__ = ["MADE_WITH", "cores", "environment", "memory_gb", "version_of"]

MADE_WITH = "made_with"
"""The name it has in model files and config.toml."""

_LIBRARIES = ("torch", "numpy", "safetensors", "numba", "scipy", "scikit-image", "astra-toolbox", "h5py", "pydicom")
_GIT_SECONDS = 5.0


def environment(threads: int | None = None) -> dict[str, Any]:
    """Versions of learnreg and of what computes, commit, machine, and the number of threads (torch's by default)."""
    found = {name: version_of(name) for name in _LIBRARIES}
    cuda = torch.cuda.is_available()
    return {
        "learnreg": version_of("learnreg") or "unknown",
        "commit": _commit() or "unknown",
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": cores(),
        "memory_gb": memory_gb() or 0.0,
        "accelerator": torch.cuda.get_device_name(0) if cuda else "none",
        "threads": torch.get_num_threads() if threads is None else threads,
        "vector_instructions": torch.backends.cpu.get_cpu_capability(),
        "libraries": [f"{name} {found[name]}" for name in _LIBRARIES if found[name]],
    }


def version_of(package: str) -> str | None:
    """The version of an installed package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_gb() -> float | None:
    """Physical memory in gigabytes, where the system tells."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (AttributeError, OSError, ValueError):
        return None


@cache
def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except (OSError, ValueError):
        pass
    return platform.processor() or platform.machine()


@cache
def _commit() -> str | None:
    """Of the repository that learnreg was installed from, or that it lies in, with a + where files differ from it."""
    try:
        origin = json.loads(distribution("learnreg").read_text("direct_url.json") or "{}")
        if found := origin.get("vcs_info", {}).get("commit_id"):
            return str(found)
    except (PackageNotFoundError, ValueError, AttributeError):
        pass
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    commit, changed = _git(root, "rev-parse", "HEAD"), _git(root, "status", "--porcelain", "--untracked-files=no")
    return None if not commit else commit + ("+" if changed else "")


def _git(root: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, timeout=_GIT_SECONDS, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
