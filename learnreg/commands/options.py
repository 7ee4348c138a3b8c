"""Options of a training run: one dataclass of defaults, merged with files, ``--set`` and explicit options."""

from __future__ import annotations

import dataclasses
import difflib
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

from learnreg.datasets import parse_sigma
from learnreg.errors import ConfigError
from learnreg.hypergradients import METHODS
from learnreg.regularizers import trainable
from learnreg.regularizers.options import RegularizerOptions, again, option
from learnreg.training.optimizers import UPPER_LEVELS
from learnreg.training.run_folder import RunFolder

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = [
    "DenoiseConfig",
    "TomographyConfig",
    "TrainingConfig",
    "check_resume",
    "merge_config",
    "read_toml",
    "training_options",
]

BEAMS = ("parallel", "fan")


_main = partial(option, main=True)
_ENDLESS = 1e6  # minutes
_FORMER_NAMES = {"max_updates": "updates"}


@dataclass(frozen=True)
class RunOptions:
    """Options of a run, whatever it learns."""

    regularizer: str = _main("fields-of-experts", "what is learned", choices=trainable())
    method: str = _main(next(iter(METHODS)), "hypergradient method", choices=tuple(METHODS))
    minutes: float = _main(
        5.0,
        "of upper-level training at most; with --updates alone: no limit",
        above=0.0,
        at_most=_ENDLESS,
        resumable=True,
    )
    updates: int = _main(0, "upper-level updates at most; 0: as many as the minutes allow", at_least=0, resumable=True)
    out: str = _main("runs/denoise", "run folder", resumable=True)
    seed: int = _main(0, "seed of images, noise and initial filters", at_least=0, at_most=2**62)
    batch_size: int = option(16, "samples in a batch", at_least=1)


@dataclass(frozen=True)
class TrainingConfig(RegularizerOptions, RunOptions):
    """Options of every training run. Raises ConfigError for a value of the wrong type or out of range."""

    optimizer: str = option(
        "adam", "upper-level method: minibatches, or the first samples at once", choices=tuple(UPPER_LEVELS)
    )
    samples: int = option(64, "samples that lbfgs and adaptive minimise over", at_least=1)
    step_size: float = option(3e-2, "initial upper-level step size of adam and adaptive", above=0.0)
    tolerance: float = option(1e-1, "relative error of the hypergradients, held by certified audits", above=0.0)
    tune: bool = option(True, "whether training starts at the best factor of the initial regularizer")

    def __post_init__(self) -> None:
        check_options(self)
        super().__post_init__()


@dataclass(frozen=True)
class DenoiseConfig(TrainingConfig):
    """Options of ``learnreg train denoise``. Raises ConfigError for a value of the wrong type or out of range."""

    data: str = _main("natural", "'natural', photographs installed with scikit-image, or a folder of clean images")
    sigma: str = _main("25/255", "noise level, the standard deviation for images in [0, 1]", numeric_text=True)
    patch: int = option(64, "side of the training patches in pixels", at_least=8)
    patches: int = option(512, "number of training patches", at_least=1)
    size: int = option(5, "side of the filters", at_least=2)

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.noise_level

    @property
    def filter_side(self) -> int:
        return self.size

    @property
    def noise_level(self) -> float:
        """sigma as a number."""
        return parse_sigma(self.sigma)


@dataclass(frozen=True)
class TomographyConfig(TrainingConfig):
    """Options of ``learnreg train ct``. Raises ConfigError for a value of the wrong type or out of range."""

    data: str = _main("ellipses", "'ellipses', seeded phantoms, or a folder: PNG, TIFF or DICOM slices, or LoDoPaB")
    geometry: str = _main("parallel", "beam; a fan has its source two image sides from the centre", choices=BEAMS)
    angles: int = _main(60, "number of views, over the half turn (parallel) or the full one (fan)", at_least=1)
    size: int = _main(128, "side of the images in pixels; others are averaged or resized to it", at_least=16)
    noise: float = _main(
        0.01,
        "standard deviation of the Gaussian noise, relative to the mean of the sinogram",
        at_least=0.0,
        at_most=1.0,
    )
    photons: float = option(0.0, "photons per ray, for Poisson noise in place of Gaussian; 0: Gaussian", at_least=0.0)
    attenuation: float = option(16.0, "with photons, what line integrals mean to them: docs/ct_data.md", above=0.0)
    statistical: bool = option(True, "with photons, whether each ray is weighted by the counts it left")
    images: int = option(64, "training images at most", at_least=1)
    ridge: float = option(1e-4, "r/2 ‖x‖² makes reconstructions unique and certifiable; more of it biases", above=0.0)
    nonnegative: bool = option(True, "whether reconstructions are constrained to be nonnegative")
    filter_size: int = option(5, "side of the filters", at_least=2)
    boundary: str = again(TrainingConfig, "boundary", "valid")
    out: str = again(TrainingConfig, "out", "runs/ct")
    minutes: float = again(TrainingConfig, "minutes", 8.0)
    batch_size: int = again(TrainingConfig, "batch_size", 8)
    weight: float = again(TrainingConfig, "weight", 3e-5)

    @property
    def filter_side(self) -> int:
        return self.filter_size


C = TypeVar("C", bound="DataclassInstance")
T = TypeVar("T", bound=TrainingConfig)


def merge_config(
    kind: type[C],
    *,
    stored: Mapping[str, Any] | None = None,
    file: str | Path | None = None,
    assignments: Sequence[str] = (),
    explicit: Mapping[str, Any] | None = None,
) -> C:
    """Options from the defaults, then a stored configuration, a TOML file, KEY=VALUE assignments and explicit options:
    the later source wins; an explicit None is no option.

    Raises
    ------
    ConfigError: an unknown key, a wrong type, a value out of range, or an unreadable file.
    """
    values: dict[str, Any] = {}
    for source, origin in ((stored or {}, "the stored configuration"), (read_toml(file) if file else {}, str(file))):
        for key, value in source.items():
            values[_known(kind, key, origin)] = value
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        if not separator:
            raise ConfigError(f"--set {assignment}: expected KEY=VALUE.")
        key = _known(kind, key.strip(), "--set")
        values[key] = _parse(key, text.strip(), get_type_hints(kind)[key])
    for key, value in (explicit or {}).items():
        if value is not None:
            values[_known(kind, key, "the options")] = value
    if values.get("updates"):
        values.setdefault("minutes", _ENDLESS)  # the default is for runs that only the time ends
    return kind(**_widen(kind, values))


def read_toml(file: str | Path) -> dict[str, Any]:
    """The table in a TOML file; ConfigError when it is missing or no TOML."""
    try:
        return tomllib.loads(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--config {file}: cannot be read ({error.strerror or error}).") from error
    except ValueError as error:
        raise ConfigError(f"--config {file}: not a TOML file ({error}).") from error


def check_resume(stored: DataclassInstance, wanted: DataclassInstance) -> None:
    """ConfigError when an option differs that a resumed run cannot change."""
    for field in dataclasses.fields(wanted):
        before, now = getattr(stored, field.name), getattr(wanted, field.name)
        if before != now and not field.metadata.get("resumable"):
            raise ConfigError(
                f"{field.name}={now!r}: the run was started with {before!r}, which --resume cannot change. "
                "Leave the option out, or start a new run with another --out."
            )


def training_options(
    kind: type[T], file: Path | None, assignments: list[str], explicit: Mapping[str, Any], resume: bool
) -> T:
    """Defaults, then the file, then assignments, then explicit options; a resumed run starts from its own config.toml.

    Raises
    ------
    ConfigError: what ``merge_config`` names, or an option that a resumed run cannot change.
    """
    first = merge_config(kind, file=file, assignments=assignments, explicit=explicit)
    if not resume:
        return first
    stored = RunFolder(first.out, resume=True).load_config()
    if stored is None:
        return first
    # The folder may have been moved since its config.toml was written.
    here = {**stored, "out": first.out}
    wanted = merge_config(kind, stored=here, file=file, assignments=assignments, explicit=explicit)
    check_resume(merge_config(kind, stored=here), wanted)
    return wanted


def check_options(config: DataclassInstance) -> None:
    """ConfigError unless every option has its type and lies in its range."""
    hints = get_type_hints(type(config))
    for field in dataclasses.fields(config):
        _check(field.name, getattr(config, field.name), hints[field.name], field.metadata)


def _check(key: str, value: Any, kind: Any, limits: Mapping[str, Any]) -> None:
    if type(value) is not kind:
        raise ConfigError(f"{key}={value!r}: got a {type(value).__name__}, expected {_NAMES[kind]}.")
    choices = limits["choices"]
    if choices and value not in choices:
        raise ConfigError(f"{key}={value!r}: expected one of {', '.join(choices)}.{_nearest(value, choices)}")
    if kind is str:
        if not value.strip():
            raise ConfigError(f"{key}={value!r}: expected a text that is not empty.")
        return
    above, at_least, at_most = limits["above"], limits["at_least"], limits["at_most"]
    limits_given = ((">", above), (">=", at_least), ("<=", at_most))
    expected = [f"{sign} {limit:g}" for sign, limit in limits_given if limit is not None]
    fits = (above is None or value > above) and (at_least is None or value >= at_least)
    if not (fits and (at_most is None or value <= at_most) and math.isfinite(value)):
        raise ConfigError(f"{key}={value!r}: expected {_NAMES[kind]} {' and '.join(expected)}.")


_NAMES = {str: "a text", int: "an integer", float: "a finite number", bool: "true or false"}
_WORDS = {"true": True, "false": False}


def _known(kind: type[DataclassInstance], key: str, origin: str) -> str:
    names = [field.name for field in dataclasses.fields(kind)]
    if key not in names:
        key = _FORMER_NAMES.get(key, key)
    if key in names:
        return key
    if key.replace("-", "_") in names:
        return key.replace("-", "_")
    raise ConfigError(
        f"{origin}: the option {key!r} is unknown.{_nearest(key, names)} Known options: {', '.join(names)}."
    )


def _nearest(word: str, words: Sequence[str]) -> str:
    found = difflib.get_close_matches(word, words, n=1)
    return f" Did you mean {found[0]!r}?" if found else ""


def _parse(key: str, text: str, kind: type) -> Any:
    """The value of a KEY=VALUE assignment."""
    if kind is bool and text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if kind is str:
        return text.removeprefix('"').removesuffix('"')
    try:
        if kind in (int, float):
            return kind(text)
    except ValueError:
        pass
    raise ConfigError(f"{key}={text!r}: expected {_NAMES[kind]}.")


def _widen(kind: type[DataclassInstance], values: Mapping[str, Any]) -> dict[str, Any]:
    """Integers where a float is expected (minutes = 5), numbers where a text may be one (sigma = 0.1)."""
    hints, fields = get_type_hints(kind), {field.name: field for field in dataclasses.fields(kind)}
    result = dict(values)
    for key, value in values.items():
        if hints[key] is float and type(value) is int:
            result[key] = float(value) if abs(value) < 2**53 else math.inf
        elif fields[key].metadata["numeric_text"] and type(value) in (int, float):
            result[key] = str(value)
    return result
