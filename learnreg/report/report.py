"""The report of a training run: pictures, numbers and what they certify, in one HTML file, and figures as PDF files."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from statistics import median
from typing import Any

from torch import Tensor

from learnreg import plot
from learnreg.errors import ConfigError, LearnregError
from learnreg.models.extras import require
from learnreg.models.tensor_files import write_atomically
from learnreg.plot.style import figure_file
from learnreg.progress import counted
from learnreg.regularizers import Regularizer
from learnreg.report.comparison import Compared, Comparison
from learnreg.report.lower_level import Conditioning
from learnreg.report.noise_sweep import NoiseSweep

__all__ = [
    "CertificateStatistics",
    "Report",
    "certificate_statistics",
    "in_words",
    "missing_package",
    "require_packages",
    "write_report",
]

_MAX_IMAGES = 4
_DPI, _QUALITY = 110, 80
_PACKAGES = (
    ("jinja2", "writing the report", "jinja2"),
    ("matplotlib", "drawing figures", "matplotlib"),
    ("skimage.metrics", "measuring SSIM", "scikit-image"),
)


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


@dataclass(frozen=True)
class Report:
    """What a report is made of.

    comparison: the learned regularizer beside total variation; None where there is nothing to compare. held_out:
    whether its images were kept from training. regularizer: the learned one, as it is drawn. rows: of metrics.jsonl;
    each key may be missing. config, summary: tables, such as the options of the run and what training returned.
    conditioning: of lower-level problems by name. sweep: of a noise-conditioned denoiser. notes: sentences of what has
    to be known of the run, shown first.
    """

    title: str
    comparison: Comparison | None
    regularizer: Regularizer
    rows: Sequence[Mapping[str, Any]] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)
    conditioning: Mapping[str, Conditioning] = field(default_factory=dict)
    sweep: NoiseSweep | None = None
    held_out: bool = True
    notes: Sequence[str] = ()

    @property
    def methods(self) -> dict[str, str]:
        """What was compared, by its key, in words."""
        if self.comparison is None:
            return {}
        words = {"input": self.comparison.input_name, "tv": "total variation", "learned": "learned"}
        return {what: words[what] for what in self.comparison.methods}


def write_report(folder: Path, report: Report) -> Path:
    """Write report.html (self-contained, each picture once) and the figures as PDF files, figures/*.pdf, into a folder;
    returns the path of the report.

    Raises
    ------
    ConfigError: matplotlib, jinja2 or scikit-image is not installed. CheckpointError: the system refuses.
    """
    jinja2 = require(*_PACKAGES[0])
    figures, pages = folder / "figures", {}
    figures.mkdir(parents=True, exist_ok=True)
    for name, figure in counted(_figures(report), "drawing the report"):
        write_atomically(figures / f"{name}.pdf", figure_file(figure, "pdf"))
        pages[name] = _embed(figure, photographic=name.startswith("comparison"))
    for old in figures.glob("*.pdf"):  # of a report of fewer images
        if old.stem not in pages:
            old.unlink()
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    source = files("learnreg.report").joinpath("report.html.j2").read_text(encoding="utf-8")
    page: str = environment.from_string(source).render(
        report=report,
        comparison=report.comparison,
        methods=report.methods,
        means={what: report.comparison.mean(what) for what in report.methods} if report.comparison else {},
        pictures=pages,
        compared=[pages[name] for name in sorted(pages) if name.startswith("comparison")],
        statistics=certificate_statistics(report.rows),
        in_words=in_words,
    )
    path = folder / "report.html"
    write_atomically(path, page.encode())
    return path


def _figures(report: Report) -> Iterator[tuple[str, Any]]:
    """Every figure that there is something to draw for, by the name of its file."""
    comparison, rows = report.comparison, report.rows
    if comparison is not None:
        for i, image in enumerate(comparison.images[:_MAX_IMAGES]):
            if image.clean.dim() == 3 and len(image.clean) in (1, 3):
                yield f"comparison-{i + 1}", _compared(image, report.methods)
    if any(isinstance(row.get("loss"), (int, float)) for row in rows):
        yield "learning_curve", plot.learning_curve(list(rows))
    shown = report.regularizer.pictures()
    if shown is not None and shown.filters is not None:
        yield "filters", plot.filters(report.regularizer)
    if shown is not None and shown.slopes is not None:
        yield "potentials", plot.potentials(report.regularizer)
    yield from _spectrum(report.regularizer)
    if comparison is not None and comparison.images[0].minimiser is not None:
        yield from _weights(report.regularizer, comparison.images[0].minimiser)
    if comparison is not None:
        histories = {report.methods[what]: history for what, history in comparison.images[0].histories.items()}
        if any(bool(history.error_bound.isfinite().any()) for history in histories.values()):
            yield "convergence", plot.convergence(histories, comparison.tolerance)
    if report.sweep is not None:
        yield "noise_levels", plot.noise_levels(report.sweep.levels, report.sweep.psnr, report.sweep.trained)


def _spectrum(regularizer: Regularizer) -> Iterator[tuple[str, Any]]:
    try:
        yield "spectrum", plot.spectrum(regularizer)
    except LearnregError:
        return  # it has none


def _weights(regularizer: Regularizer, minimiser: Tensor) -> Iterator[tuple[str, Any]]:
    try:
        yield "weights", plot.weights(regularizer, minimiser)
    except LearnregError:
        return  # it has none


def _compared(image: Compared, methods: Mapping[str, str]) -> Any:
    titles = {what: f"{name}: {_quality(image, what)}" for what, name in methods.items()}
    images = {titles[what]: x for what, x in image.pictures().items()}
    return plot.comparison(images, image.clean, measured=titles["input"])


def _quality(image: Compared, what: str) -> str:
    found = image.quality[what]
    ssim = "" if math.isnan(found.ssim) else f", SSIM {found.ssim:.3f}"
    return f"{found.psnr:.2f} dB{ssim}"


def require_packages() -> None:
    """Raise ConfigError, before the work of which a report is to be written, if a package for it is missing."""
    for package in _PACKAGES:
        require(*package)


def missing_package() -> str:
    """What to say where a package for reports is missing; empty where none is."""
    try:
        require_packages()
    except ConfigError as error:
        return str(error)
    return ""


def _embed(figure: Any, photographic: bool) -> str:
    """The figure as the address of an image: a WebP file, compressed with loss where it is made of photographs."""
    features = require("PIL.features", "drawing figures", "pillow")
    if not features.check("webp"):
        return f"data:image/png;base64,{base64.b64encode(figure_file(figure, 'png', _DPI)).decode()}"
    options = {"quality": _QUALITY} if photographic else {"lossless": True}
    return f"data:image/webp;base64,{base64.b64encode(figure_file(figure, 'webp', _DPI, **options)).decode()}"


def in_words(value: object) -> str:
    """A number, list, truth value or None as people write it."""
    if isinstance(value, (list, tuple)):
        return ", ".join(map(in_words, value)) or "none"
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return f"{value:.6g}" if isinstance(value, float) else str(value)
