"""Regularizers: convex or weakly convex functions of an image with learnable parameters, and the table of those that
model files and the command line know."""

import inspect

from learnreg.errors import ConfigError
from learnreg.lower_level.regularizer import Combination, Regularizer
from learnreg.lower_level.saddle_terms import SaddleTerms
from learnreg.regularizers.analysis import AnalysisOperator
from learnreg.regularizers.fields_of_experts import FieldsOfExperts
from learnreg.regularizers.imported import ImportedRidge
from learnreg.regularizers.input_convex import InputConvexNetwork
from learnreg.regularizers.learned_tgv import LearnedTotalGeneralizedVariation
from learnreg.regularizers.learned_total_variation import LearnedTotalVariation
from learnreg.regularizers.multivariate import MultivariateExperts
from learnreg.regularizers.reweighted import Reweighted, ReweightedRidge
from learnreg.regularizers.ridge import RidgeRegularizer
from learnreg.regularizers.ridge_files import import_ridge
from learnreg.regularizers.scaled import Scaled
from learnreg.regularizers.tikhonov import GeneralisedTikhonov
from learnreg.regularizers.total_variation import TotalVariation

__all__ = [
    "REGULARIZERS",
    "AnalysisOperator",
    "Combination",
    "FieldsOfExperts",
    "GeneralisedTikhonov",
    "ImportedRidge",
    "InputConvexNetwork",
    "LearnedTotalGeneralizedVariation",
    "LearnedTotalVariation",
    "MultivariateExperts",
    "Regularizer",
    "Reweighted",
    "ReweightedRidge",
    "RidgeRegularizer",
    "SaddleTerms",
    "Scaled",
    "TotalVariation",
    "canonical_name",
    "import_ridge",
    "letters",
    "register",
    "trainable",
]

REGULARIZERS: dict[str, type[Regularizer]] = {
    "fields-of-experts": FieldsOfExperts,
    "tv": TotalVariation,
    "tikhonov": GeneralisedTikhonov,
    "ridge": RidgeRegularizer,
    "multivariate": MultivariateExperts,
    "learned-tv": LearnedTotalVariation,
    "learned-tgv": LearnedTotalGeneralizedVariation,
    "icnn": InputConvexNetwork,
    "imported-ridge": ImportedRidge,
    "scaled": Scaled,
    "reweighted": Reweighted,
    "reweighted-ridge": ReweightedRidge,
    "combination": Combination,
}
"""By the name in model files and, where they implement ``from_options``, on the command line."""


ALIASES = {
    "foe": "fields-of-experts",
    "fields": "fields-of-experts",
    "tgv": "learned-tgv",
    "crr": "ridge",  # convex ridge regularizer
}
"""Further names on the command line; those of the classes and other spellings of a name need no line."""


def canonical_name(text: str) -> str:
    """The name in ``REGULARIZERS`` of what somebody wrote: that name in any spelling ("Fields_of_experts"), the name of
    the class, or an alias. The text itself, if it is none.

    Parameters
    ----------
    text: what somebody wrote.
    """
    known = {letters(cls.__name__): name for name, cls in REGULARIZERS.items()}
    known |= {letters(alias): name for alias, name in ALIASES.items()} | {letters(name): name for name in REGULARIZERS}
    return known.get(letters(text), text)


def letters(text: str) -> str:
    """What two spellings of a name have in common.

    Parameters
    ----------
    text: a name in any spelling.
    """
    return "".join(filter(str.isalnum, text.casefold()))


def register(name: str, cls: type[Regularizer]) -> None:
    """Let model files hold regularizers of your own class, under this name: call it before ``learnreg.load``.

    Parameters
    ----------
    name: not taken by another class; better long and specific, since files carry it.
    cls: implements ``config``, a method or a property, and ``from_config`` unless its constructor takes what ``config``
        returns as keywords. Neither where the constructor takes nothing.

    Raises
    ------
    ConfigError: the name is taken, or the class cannot be stored.
    """
    if not isinstance(name, str) or not name.strip():
        raise ConfigError(f"register(name={name!r}): expected a text that is not empty.")
    if not (isinstance(cls, type) and issubclass(cls, Regularizer)):
        raise ConfigError(f"register({name!r}, {cls!r}): expected a subclass of Regularizer.")
    if cls.config is Regularizer.config and len(inspect.signature(cls).parameters):
        raise ConfigError(
            f"register({name!r}, {cls.__name__}): its constructor takes arguments, so that it has to implement "
            "config(), which returns them as a dict."
        )
    known = REGULARIZERS.get(name, cls)
    # A cell of a notebook that runs again defines the same class anew.
    if known is not cls and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
        raise ConfigError(f"register({name!r}, {cls.__name__}): the name is taken by {known.__name__}; choose another.")
    REGULARIZERS[name] = cls


def trainable() -> tuple[str, ...]:
    """Names of the regularizers that the command line can train."""
    default = Regularizer.from_options.__func__  # type: ignore[attr-defined]
    return tuple(name for name, cls in REGULARIZERS.items() if cls.from_options.__func__ is not default)  # type: ignore[attr-defined]
