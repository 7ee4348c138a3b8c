"""Packages of extras, imported when they are needed."""

from __future__ import annotations

import importlib
from typing import Any

from learnreg.errors import ConfigError

__all__ = ["require"]


def require(module: str, purpose: str, package: str, extra: str = "images") -> Any:
    """The module, or ConfigError naming the extra that installs its package."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"{purpose} needs the package {package}, which cannot be imported ({error}). "
            f"Install it with: pip install 'learnreg[{extra}]'"
        ) from error
