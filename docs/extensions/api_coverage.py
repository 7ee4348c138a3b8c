"""What the reference says of every public name: its page, parameters, errors, an example. ``docs/build`` prints the
counts; the tests hold them."""

from __future__ import annotations

import ast
import enum
import inspect
import itertools
import re
import textwrap
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

REFERENCE = Path(__file__).resolve().parents[1] / "reference"
ROOMS = (
    *("learnreg", "learnreg.regularizers", "learnreg.operators", "learnreg.datasets", "learnreg.solvers"),
    *("learnreg.testing", "learnreg.plot"),
)
CHECKS = ("check_", "_check", "whole_number", "real_number", "require")
"""How functions are called that raise errors of this package on bad arguments."""


def public_names() -> dict[str, Any]:
    """Every public object by the name under which it is documented: that of the first room it is in."""
    found: dict[str, Any] = {}
    for room in ROOMS:
        module = import_module(room)
        for name in module.__all__:
            value = getattr(module, name)
            if not isinstance(value, ModuleType) and not any(value is other for other in found.values()):
                found[f"{room}.{name}"] = value
    return found


def listed() -> list[str]:
    """The names that have a page: those of the tables in docs/reference."""
    found = []
    for path in sorted(REFERENCE.glob("*.rst")):
        text = path.read_text(encoding="utf-8")
        module = re.search(r"^\.\. currentmodule:: (\S+)$", text, flags=re.M)
        for name in re.findall(r"^   ~?([A-Za-z][\w.]*)$", text, flags=re.M) if "autosummary" in text else ():
            found.append(f"{module[1]}.{name}" if module else name)
    return found


def parameters(thing: Any) -> list[str]:
    """What a call takes; nothing for what is not called, and for names that nobody writes."""
    if not callable(thing) or is_error(thing) or (isinstance(thing, type) and issubclass(thing, enum.Enum)):
        return []
    try:
        signature = inspect.signature(thing)
    except ValueError:
        return []
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [name for name, parameter in signature.parameters.items() if parameter.kind not in kinds and name != "self"]


def undocumented(thing: Any) -> list[str]:
    """Parameters of which nothing is said: in an entry "name: text" or in ``code`` in a docstring, of a class also of
    those it is derived from, or below a field."""
    owners = [cls for cls in getattr(thing, "__mro__", ()) if cls.__module__.startswith("learnreg")] or [thing]
    texts = [inspect.getdoc(owner) or "" for owner in owners]
    texts += [inspect.getdoc(owner.__init__) or "" for owner in owners if isinstance(owner, type)]
    text = " ".join("\n".join(texts).split())
    said = fields_with_text(thing)
    return [name for name in parameters(thing) if name not in said and not _is_said(name, text)]


def _is_said(name: str, text: str) -> bool:
    entry = rf"(?<![\w`]){name}(?=(?:,? (?:and )?\*{{0,2}}\w+)*: )"
    return re.search(entry, text) is not None or re.search(rf"``{name}\b.*?``", text) is not None


def fields_with_text(thing: Any) -> set[str]:
    """Fields of a class, and of those it is derived from, with a docstring below them."""
    found: set[str] = set()
    for cls in getattr(thing, "__mro__", ()):
        if not cls.__module__.startswith("learnreg"):
            continue
        body = _tree(cls).body
        for statement, following in itertools.pairwise(body):
            if isinstance(statement, ast.AnnAssign) and isinstance(following, ast.Expr):
                found.add(ast.unparse(statement.target))
    return found


def says_no_errors(thing: Any) -> bool:
    """Whether a call checks its arguments, and the docstring has no section Raises."""
    if not callable(thing) or is_error(thing):
        return False
    text = inspect.getdoc(thing) or ""
    bodies = [thing]
    if isinstance(thing, type):
        bodies = [thing.__dict__[name] for name in ("__init__", "__post_init__") if name in thing.__dict__]
        text += "".join(inspect.getdoc(body) or "" for body in bodies)
    return "Raises\n" not in text and any(_raises(body) for body in bodies)


def _raises(function: Callable[..., Any]) -> bool:
    try:
        nodes = list(ast.walk(_tree(function)))
    except (OSError, TypeError):  # generated, as by dataclasses
        return False
    calls = [ast.unparse(node.func).split(".")[-1] for node in nodes if isinstance(node, ast.Call)]
    return any(isinstance(node, ast.Raise) for node in nodes) or any(name.startswith(CHECKS) for name in calls)


def needs_example(thing: Any) -> bool:
    """Classes that users make objects of; not errors, and not contracts."""
    return isinstance(thing, type) and not is_error(thing) and not inspect.isabstract(thing)


def has_example(thing: Any) -> bool:
    return ">>>" in (thing.__dict__.get("__doc__") or "" if isinstance(thing, type) else inspect.getdoc(thing) or "")


def is_error(thing: Any) -> bool:
    return isinstance(thing, type) and issubclass(thing, BaseException)


def _tree(thing: Any) -> Any:
    return ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(thing)))).body[0]


def holes() -> dict[str, list[str]]:
    """What is missing, by kind."""
    names, pages = public_names(), set(listed())
    return {
        "page": [name for name in names if name not in pages],
        "parameters": [f"{name}: {', '.join(missing)}" for name in names if (missing := undocumented(names[name]))],
        "errors": [name for name in names if says_no_errors(names[name])],
        "example": [name for name in names if needs_example(names[name]) and not has_example(names[name])],
    }


def report() -> str:
    names, missing = public_names(), holes()
    classes = sum(map(needs_example, names.values()))
    totals = {"page": len(names), "parameters": len(names), "errors": len(names), "example": classes}
    counts = [f"{totals[kind] - len(missing[kind])} of {totals[kind]} have {kind}" for kind in missing]
    lines = [f"{len(names)} public names, {classes} classes: {'; '.join(counts)}"]
    return "\n".join(lines + [f"  no {kind}: {name}" for kind, found in missing.items() for name in found])


def setup(app: Any) -> dict[str, bool]:
    app.connect("build-finished", lambda app, error: print(report()) if error is None else None)
    return {"parallel_read_safe": True}


if __name__ == "__main__":
    print(report())
