"""Potentials: the functions that regularizers apply to filter responses; the table of those with a name in files."""

from learnreg.errors import ConfigError
from learnreg.potentials.absolute_value import AbsoluteValue
from learnreg.potentials.base import Potential
from learnreg.potentials.huber import Huber
from learnreg.potentials.log_cosh import LogCosh
from learnreg.potentials.proximal import ProximalPotential
from learnreg.potentials.pseudo_huber import PseudoHuber
from learnreg.potentials.square import Square

__all__ = [
    "POTENTIALS",
    "AbsoluteValue",
    "Huber",
    "LogCosh",
    "Potential",
    "PseudoHuber",
    "Square",
    "potential_from_config",
    "potential_to_config",
]

POTENTIALS: dict[str, type[ProximalPotential]] = {
    "pseudo-huber": PseudoHuber,
    "log-cosh": LogCosh,
    "huber": Huber,
    "square": Square,
    "absolute-value": AbsoluteValue,
}
"""By the name in configuration files."""


def potential_to_config(potential: Potential) -> str:
    """The name of a potential in configuration files."""
    for name, kind in POTENTIALS.items():
        if type(potential) is kind:
            return name
    raise ConfigError(f"{type(potential).__name__} cannot be stored; expected one of {', '.join(POTENTIALS)}.")


def potential_from_config(name: str, smoothing: float = 1e-2, weight: float = 1.0) -> ProximalPotential:
    """The potential of that name, with those of the numbers that it has."""
    if name not in POTENTIALS:
        raise ConfigError(f"potential {name!r} is unknown; expected one of {', '.join(POTENTIALS)}.")
    return POTENTIALS[name].of(smoothing=smoothing, weight=weight)
