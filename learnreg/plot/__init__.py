"""Figures for papers and reports, as matplotlib figures: ``lr.plot.filters(R).savefig("filters.pdf")``.

matplotlib comes with the extra ``images`` and is imported when the first figure is drawn."""

from learnreg.plot.curves import convergence, learning_curve, noise_levels
from learnreg.plot.images import comparison, most_informative
from learnreg.plot.maps import maps
from learnreg.plot.regularizers import filters, potentials
from learnreg.plot.spectra import spectrum
from learnreg.plot.style import COLOURS, paper_style
from learnreg.plot.weights import weights

__all__ = [
    "COLOURS",
    "comparison",
    "convergence",
    "filters",
    "learning_curve",
    "maps",
    "most_informative",
    "noise_levels",
    "paper_style",
    "potentials",
    "spectrum",
    "weights",
]
