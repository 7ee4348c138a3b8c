"""Docstrings as they are written here, made into reStructuredText.

Sections are underlined as NumPy's, with one entry ``name: text`` (or ``a, b: text``) a line and its continuation
indented; outside of ``code`` nothing is markup: ``*``, ``|`` and ``_`` are letters of formulas.
"""

from __future__ import annotations

import re
from typing import Any

SECTIONS = ("Parameters", "Raises", "Returns", "Attributes", "Source")
_ENTRY = re.compile(r"^(?P<names>[*\w.]+(?:, [*\w.]+)*): (?P<text>.*)$")
_CODE = re.compile(r"(``.+?``|`[^`\n]+`|:\w+:`[^`]+`)", flags=re.S)


def plain(text: str) -> str:
    """Letters that would be markup escaped, and `code` as ``code``."""
    parts = _CODE.split(text)
    for i, part in enumerate(parts):
        if i % 2:
            parts[i] = part if part.startswith(("``", ":")) else f"`{part}`"
        else:
            parts[i] = re.sub(r"([*|])", r"\\\1", re.sub(r"(?<=\w)_(?!\w)", r"\_", part))
    return "".join(parts)


def restructured(lines: list[str]) -> list[str]:
    """The lines of a docstring as reStructuredText for napoleon."""
    blocks: list[tuple[str, list[str]]] = []
    for line in lines:
        kind = "example" if line.lstrip().startswith(">>>") else "text"
        if not line.strip():
            kind = "blank"
        elif blocks and blocks[-1][0] == "example":
            kind = "example"  # what it prints
        if not blocks or blocks[-1][0] != kind:
            blocks.append((kind, []))
        blocks[-1][1].append(line)
    escaped: list[str] = []
    for kind, block in blocks:
        escaped += plain("\n".join(block)).split("\n") if kind == "text" else block
    return _with_sections(escaped)


def _with_sections(lines: list[str]) -> list[str]:
    found: list[str] = []
    section = ""
    for i, line in enumerate(lines):
        following = lines[i + 1].strip() if i + 1 < len(lines) else ""
        if line.strip() and following and set(following) == {"-"}:
            section = line.strip()
        entry = _ENTRY.match(line) if section in ("Parameters", "Raises", "Attributes") else None
        if entry is None:
            within = section in ("Parameters", "Raises", "Attributes") and found and found[-1].strip()
            goes_on = within and line[:1].strip() and found[-1].startswith(" ")
            if section and line[:1].strip() and not goes_on and not following.startswith("--") and not found[-1]:
                found.append("")  # two empty lines end a section
                section = ""
            found.append(f"    {line}" if goes_on else line)
        elif section == "Raises":  # several errors in a line, each up to a full stop
            for part in re.split(r"(?<=[.;]) (?=[A-Z]\w*Error: )", line):
                names, _, text = part.partition(": ")
                found += [names, f"    {text}"]
        else:
            found += [entry["names"], f"    {entry['text']}"]
    return found


def _process(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    if what == "data" and (obj.__doc__ or "").startswith("\n".join(lines[:1])):
        lines.clear()  # that of dict or tuple
    lines[:] = restructured(lines)


def setup(app: Any) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", _process, priority=100)  # before napoleon
    return {"parallel_read_safe": True}
