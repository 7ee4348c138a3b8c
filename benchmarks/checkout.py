"""Makes learnreg importable from a checkout, with torch and NumPy alone: modules that are missing, and that only files
and progress bars need, get stand-ins."""

from __future__ import annotations

import importlib
import importlib.machinery
import sys
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


class StandIn(types.ModuleType):
    """A module for one that is missing and that only files and progress bars need: each name in it is an exception."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__, self.__spec__ = [], importlib.machinery.ModuleSpec(name, None)  # as a package has them

    def __getattr__(self, name: str) -> type[Exception]:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (Exception,), {})


for missing in ("safetensors", "safetensors.torch", "safetensors.numpy", "filelock", "tqdm"):
    try:
        importlib.import_module(missing)
    except ImportError:
        sys.modules[missing] = StandIn(missing)

learnreg = importlib.import_module("learnreg")
if not any((Path(part) / "operators").is_dir() for part in learnreg.__path__):  # two folders lie beside it
    learnreg.__path__.append(str(ROOT))
