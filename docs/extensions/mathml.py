"""Formulas as MathML, which browsers show by themselves: the site needs no network to be read."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from latex2mathml.converter import convert

UNKNOWN = {r"\arg\min": r"\operatorname{argmin}", r"\langle": "⟨", r"\rangle": "⟩"}
"""What the converter leaves as it is, in places."""


def mathml(latex: str, **options: str) -> str:
    for command, written in UNKNOWN.items():
        latex = latex.replace(command, written)
    return convert(latex, **options)


def _inline(translator: Any, node: Any) -> None:
    translator.body.append(mathml(node.astext()))
    raise nodes.SkipNode


def _block(translator: Any, node: Any) -> None:
    translator.body.append(f'<div class="math">{mathml(node.astext(), display="block")}</div>')
    raise nodes.SkipNode


def setup(app: Any) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    app.config.html_math_renderer = "mathml"
    return {"parallel_read_safe": True, "parallel_write_safe": True}
