"""The report of a training run: pictures, numbers and what they certify, in one HTML file."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from statistics import median
from typing import Any

from learnreg.models.extras import require
from learnreg.models.tensor_files import write_atomically
from learnreg.regularizers import Regularizer
from learnreg.report.comparison import Comparison
from learnreg.report.figures import comparison_figure, filters_figure, learning_curve_figure, to_png
from learnreg.training.run_folder import RunFolder

__all__ = ["CertificateStatistics", "certificate_statistics", "in_words", "require_packages", "write_report"]


@dataclass(frozen=True)
class CertificateStatistics:
    """Of the hypergradients of a run: how many were judged, the share that is certified, and the median and largest
    relative error bound of those (None where there are none)."""

    count: int
    share_certified: float | None
    median_bound: float | None
    largest_bound: float | None


def certificate_statistics(rows: Sequence[Mapping[str, Any]]) -> CertificateStatistics:
    """From rows with ``certified`` (bool) and ``relative_error_bound`` (number, or None for infinity)."""
    judged = [row for row in rows if isinstance(row.get("certified"), bool) and "relative_error_bound" in row]
    certified = [row for row in judged if row["certified"]]
    found = [row.get("relative_error_bound") for row in certified]
    bounds = [math.inf if bound is None else float(bound) for bound in found]
    return CertificateStatistics(
        count=len(judged),
        share_certified=len(certified) / len(judged) if judged else None,
        median_bound=median(bounds) if bounds else None,
        largest_bound=max(bounds) if bounds else None,
    )


def write_report(
    folder: RunFolder,
    comparison: Comparison,
    regularizer: Regularizer,
    config: Mapping[str, Any],
    summary: Mapping[str, Any] | None = None,
    title: str = "Learned denoiser",
) -> Path:
    """Write report.html (self-contained) and comparison.png into the run folder; returns the path of the report.

    Parameters
    ----------
    comparison: the learned regularizer beside total variation on held-out images.
    regularizer: the learned one; the filters of a field of experts or a ridge regularizer are drawn.
    config, summary: tables of the report, such as the options of the run and what training returned.

    The learning curve and the certificate statistics come from metrics.jsonl: the keys ``seconds`` or ``step``,
    ``loss``, ``loss_lower``, ``loss_upper``, ``psnr``, ``relative_error_bound``, ``certified``; each may be missing.

    Raises
    ------
    ConfigError: matplotlib or jinja2 is not installed. CheckpointError: the system refuses.
    """
    jinja2 = _jinja2()
    rows = folder.rows()
    methods = {"input": comparison.input_name, "tv": "total variation", "learned": "learned"}
    picture = to_png(comparison_figure(comparison))
    write_atomically(folder.path / "comparison.png", picture)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    source = files("learnreg.report").joinpath("report.html.j2").read_text(encoding="utf-8")
    page: str = environment.from_string(source).render(
        title=title,
        comparison=comparison,
        methods=methods,
        means={what: comparison.mean(what) for what in methods},
        gain=comparison.mean("learned").psnr - comparison.mean("tv").psnr,
        picture=_embed(picture),
        curve=_embed_figure(learning_curve_figure(rows)),
        filters=_embed_figure(filters_figure(regularizer)),
        statistics=certificate_statistics(rows),
        regularizer=repr(regularizer),
        config={key: in_words(value) for key, value in config.items()},
        summary={key: in_words(value) for key, value in (summary or {}).items()},
    )
    path = folder.path / "report.html"
    write_atomically(path, page.encode())
    return path


def require_packages() -> None:
    """Raise ConfigError, before the work of which a report is to be written, if a package for it is missing."""
    _jinja2()
    require("matplotlib", "drawing figures", "matplotlib")
    require("skimage.metrics", "measuring SSIM", "scikit-image")


def _jinja2() -> Any:
    return require("jinja2", "writing the report", "jinja2")


def _embed(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _embed_figure(figure: Any | None) -> str:
    return "" if figure is None else _embed(to_png(figure))


def in_words(value: object) -> str:
    """A number, list, truth value or None as people write it."""
    if isinstance(value, (list, tuple)):
        return ", ".join(map(in_words, value)) or "none"
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return f"{value:.6g}" if isinstance(value, float) else str(value)
