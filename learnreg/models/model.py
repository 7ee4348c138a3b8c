"""Model files: a learned regularizer and everything needed to reconstruct with it, in one safetensors file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, overload

from torch import Tensor

from learnreg.errors import CheckpointError, ConfigError, LearnregError, ShapeError
from learnreg.linear.arguments import check_dense, check_type, real_number
from learnreg.linear.operator import LinearOperator
from learnreg.linear.paths import given_path
from learnreg.lower_level.constraints import Box
from learnreg.lower_level.data_terms import DataTerm, LeastSquares
from learnreg.lower_level.problem import LowerLevelProblem
from learnreg.models.limits import ModestTensors
from learnreg.models.names import (
    build_data_term,
    build_operator,
    build_regularizer,
    check_operator,
    check_rebuilt,
    describe_data_term,
    describe_limits,
    describe_operator,
    describe_regularizer,
    open_limits,
    operator_tensors,
)
from learnreg.models.shipped import file_of
from learnreg.models.tensor_files import check_finite, check_state, plain, read_tensors, write_tensors
from learnreg.operators import Identity
from learnreg.regularizers import Regularizer
from learnreg.result import Solution
from learnreg.solvers.solve import solve

__all__ = ["FORMAT_VERSION", "Model", "load", "save_model"]

FORMAT_VERSION = 1

_OWN_KEYS = ("regularizer", "operator", "ridge", "constraint", "noise_level", "data_term", "minimiser")
_DATA_TERM = "data_term."
_DENOISING = {"name": "identity", "config": {}}
_LEAST_SQUARES = {"name": "least-squares"}


@dataclass(frozen=True)
class Model:
    """A learned regularizer with the lower-level problem it was learned for.

    regularizer: the Regularizer, its parameters trainable. config: what the file says besides the parameters: the keys
    "regularizer", "operator", "ridge", "constraint", "noise_level", "data_term", "minimiser", and those given to
    ``save_model`` (such as "sigma" and "training"). data_term: the one it was learned with, weights included. tensors:
    of the stored forward operator, by their names in the file.

    Examples
    --------
    >>> import tempfile
    >>> problem = lr.LowerLevelProblem(lr.operators.Identity((1, 8, 8)), lr.regularizers.TotalVariation(0.1))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     lr.save_model(f"{folder}/tv.safetensors", problem)
    ...     model = lr.load(f"{folder}/tv.safetensors")
    >>> model.regularizer
    TotalVariation(weight=0.1, smoothing=0.001)
    """

    regularizer: Regularizer
    config: dict[str, Any]
    data_term: DataTerm = field(default_factory=LeastSquares)
    tensors: Mapping[str, Tensor] = field(default_factory=dict, repr=False)

    @property
    def denoises(self) -> bool:
        """Whether the stored forward operator is the identity, on images of any size."""
        return bool(self.config["operator"].get("name") == "identity")

    @property
    def for_mri(self) -> bool:
        """Whether the stored forward operator measures k-space."""
        return bool(self.config["operator"].get("name") == "cartesian-mri")

    @property
    def noise_level(self) -> float | None:
        """The standard deviation of the noise that a denoiser was learned for; None where the file does not say it, or
        says several."""
        sigma = self.config["noise_level"] if self.config["noise_level"] is not None else self.config.get("sigma")
        return float(sigma) if isinstance(sigma, (int, float)) and sigma > 0 else None

    @property
    def noise_range(self) -> tuple[float, float] | None:
        """The lowest and the highest of the noise levels that a denoiser was learned for; None where its file says one,
        or none."""
        sigma = self.config.get("sigma")
        levels = [s for s in sigma if type(s) in (int, float)] if isinstance(sigma, list) else []
        return (float(min(levels)), float(max(levels))) if levels and min(levels) >= 0 < max(levels) else None

    @property
    def usual_noise_level(self) -> float | None:
        """A noise level to begin with: the model's own, or of its range 25/255 or the end next to that; None where the
        file says neither."""
        if self.noise_level is not None or self.noise_range is None:
            return self.noise_level
        low, high = self.noise_range
        return min(max(25.0 / 255.0, low), high)

    @property
    def conditioned(self) -> bool:
        """Whether the regularizer adapts to the noise level."""
        try:
            return self.regularizer.at(1.0) is not self.regularizer
        except ConfigError:  # it knows levels, and this is not one of them
            return True

    @cached_property
    def operator(self) -> LinearOperator:
        """The stored forward operator of a model with one geometry, such as a projector.

        Raises
        ------
        ConfigError: the file does not hold it, or the package that it needs is missing.
        """
        return build_operator(self.config["operator"], tensors=self.tensors)

    def problem(
        self,
        image_shape: tuple[int, ...] | None = None,
        operator: LinearOperator | None = None,
        data_term: DataTerm | None = None,
        noise_level: float | None = None,
    ) -> LowerLevelProblem:
        """The lower-level problem; for denoising on images of shape (1, height, width).

        ``operator`` replaces the stored forward operator; it is needed where the file does not hold one. ``data_term``
        and ``noise_level`` replace the stored ones.

        Raises
        ------
        ShapeError: stored weights that do not fit the measurements of another operator. ConfigError: another noise
        level than its own for a model that does not adapt to it.
        """
        if noise_level is not None and not self.conditioned:
            own = self.noise_level
            if own is None or not math.isclose(noise_level, own, rel_tol=1e-3):
                learned = "does not say for which" if own is None else f"was learned for {255.0 * own:.3g}/255"
                raise ConfigError(
                    f"noise_level={noise_level:.4g}: this model has one noise level, {learned}, and does not adapt to "
                    "others; leave it out, or take a model that adapts (learnreg models)."
                )
        limits = self.config["constraint"]
        if operator is None:
            operator = build_operator(self.config["operator"], image_shape) if self.denoises else self.operator
        return LowerLevelProblem(
            operator,
            self.regularizer,
            ridge=self.config["ridge"],
            data_term=self.data_term if data_term is None else data_term,
            constraint=None if limits is None else Box(*open_limits(limits)),
            noise_level=self.config["noise_level"] if noise_level is None else noise_level,
            minimiser=self.config.get("minimiser", "global"),
        )

    def solve(
        self,
        b: Tensor,
        tolerance: float = 1e-4,
        operator: LinearOperator | None = None,
        data_term: DataTerm | None = None,
        noise_level: float | None = None,
    ) -> Solution:
        """The Solution for measurements b, (batch, *range_shape): x with its certified root-mean-square error.

        Raises
        ------
        ShapeError: b has no batch axis, or another shape or dtype. DataError: NaN. ConfigError: tolerance <= 0, a
        ``noise_level`` that is missing for a model that adapts to those of a range, or that ``problem`` refuses.
        """
        if operator is None and self.denoises:
            _check_noisy(b, self.regularizer)
        if noise_level is None and self.config["noise_level"] is None and self.noise_range and self.conditioned:
            low, high = (f"{255.0 * level:.3g}/255" for level in self.noise_range)
            raise ConfigError(f"noise_level=None: this model adapts to noise from {low} to {high}; pass that of b.")
        return solve(self.problem(tuple(b.shape[1:]), operator, data_term, noise_level), b, tolerance=tolerance)

    @overload
    def reconstruct(
        self,
        b: Tensor,
        tolerance: float = ...,
        *,
        operator: LinearOperator | None = ...,
        noise_level: float | None = ...,
        details: Literal[False] = ...,
    ) -> Tensor: ...

    @overload
    def reconstruct(
        self,
        b: Tensor,
        tolerance: float = ...,
        *,
        operator: LinearOperator | None = ...,
        noise_level: float | None = ...,
        details: Literal[True],
    ) -> Solution: ...

    def reconstruct(
        self,
        b: Tensor,
        tolerance: float = 1e-4,
        *,
        operator: LinearOperator | None = None,
        noise_level: float | None = None,
        details: bool = False,
    ) -> Tensor | Solution:
        """The reconstruction x from measurements b, (batch, 1, height, width) for denoising.

        Parameters
        ----------
        tolerance: certified root-mean-square error per image, in units of x.
        operator: replaces the stored forward operator.
        noise_level: standard deviation of the noise, for a model that adapts to it; the stored one by default.
            ``learnreg.datasets.estimate_noise`` estimates it.
        details: return the whole Solution of ``solve``, with error bound and status.

        Raises as ``solve`` does.
        """
        solution = self.solve(b, tolerance, operator, noise_level=noise_level)
        return solution if details else solution.x


def save_model(
    path: str | Path, problem: LowerLevelProblem | Regularizer | Model, config: Mapping[str, Any] | None = None
) -> None:
    """Write a model file, atomically.

    Parameters
    ----------
    path: usually ``model.safetensors``; folders are made.
    problem: the lower-level problem the regularizer was learned for. A regularizer alone is stored for denoising,
        ½‖x - b‖² + R(x). Operators of this package are stored, with their tensors and also composed, added and stacked;
        of another one its class alone: give it again to ``Model.problem``, or store what ``assemble`` makes of it.
        Weights of the data term are stored, learned or given. A loaded Model is stored as it was, with its config.
    config: anything JSON knows, such as {"sigma": 0.098, "training": {...}}; becomes part of ``Model.config``.

    Raises
    ------
    ConfigError: a regularizer, data term or constraint that cannot be stored, or a reserved key in ``config``.
    CheckpointError: NaN or infinite parameters, or the system refuses.
    """
    path = given_path(path, "save_model(path)")
    expected = "a LowerLevelProblem, a Regularizer or a Model"
    check_type(problem, (LowerLevelProblem, Regularizer, Model), "save_model(problem)", expected)
    given = dict(config or {})
    if reserved := sorted(set(given) & set(_OWN_KEYS)):
        raise ConfigError(f"save_model(config=...): the keys {', '.join(reserved)} are taken from the problem.")
    if isinstance(problem, Model):
        given = {**{key: value for key, value in problem.config.items() if key not in _OWN_KEYS}, **given}
    regularizer = problem if isinstance(problem, Regularizer) else problem.regularizer
    state = regularizer.state_dict()
    described, tensors = _describe_problem(problem)
    description = describe_regularizer(regularizer)
    check_rebuilt(regularizer, description)
    for name, tensor in tensors.items():
        if name in state:
            raise ConfigError(f"save_model: two tensors are called {name!r}; rename the regularizer's submodule.")
        state = {**state, name: tensor}
    check_finite(state, path)
    content = {
        "format_version": FORMAT_VERSION,
        "regularizer": description,
        **described,
        "config": plain(given),
    }
    write_tensors(path, state, content)


def load(path: str | Path) -> Model:
    """Read a model file, that of a run folder, or a shipped model by its name (see ``pretrained``). Executes no code
    from the file.

    Parameters
    ----------
    path: a model file; a run folder, or one in the Hub's layout, that holds model.safetensors; or the name of a
        shipped model, a text, which stands for it whatever lies in the working directory.

    Raises
    ------
    CheckpointError: a name that is not shipped, a missing, truncated or damaged file (SHA-256), another format, an
        unknown regularizer, parameters that are missing, superfluous, of the wrong shape or not finite.
    """
    if not isinstance(path, (str, Path)):
        raise CheckpointError(
            f"load(path): got {type(path).__name__}, expected a path, or the name of a shipped model."
        )
    file = file_of(path)
    tensors, content = read_tensors(file)
    version = content.get("format_version")
    if type(version) is not int or version != FORMAT_VERSION:
        what = "not a model file" if version is None else f"a model file of format {version!r}"
        raise CheckpointError(f"{file}: {what}; this version of learnreg reads model files of format {FORMAT_VERSION}.")
    numbers = sum(tensor.numel() for tensor in tensors.values())
    try:
        with ModestTensors(numbers):
            regularizer = build_regularizer(content["regularizer"], numbers)
        for key, value in (("data_term", _LEAST_SQUARES), ("minimiser", "global")):  # files of earlier versions
            content.setdefault(key, value)
        config = {**content["config"], **{key: content[key] for key in _OWN_KEYS}}
        stored = [name for name in tensors if name.startswith(_DATA_TERM)]
        of_data_term = {name.removeprefix(_DATA_TERM): tensors.pop(name) for name in stored}
        data_term = build_data_term(content["data_term"], of_data_term)
        check_operator(content["operator"])
        of_operator = {name: tensors.pop(name) for name in operator_tensors(content["operator"])}
        check_state(regularizer.state_dict(), tensors, file)
        check_finite({**tensors, **of_operator}, file)
        regularizer.load_state_dict(tensors, assign=True)
        model = Model(regularizer, config, data_term, of_operator)
        _check_problem(model)
    except CheckpointError:
        raise
    except Exception as error:  # constructors raise many kinds when a description is not theirs
        cause = str(error) if isinstance(error, LearnregError) else f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{file}: cannot be rebuilt: {cause}") from error
    return model


def _describe_problem(problem: LowerLevelProblem | Regularizer | Model) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """All but the regularizer, and the tensors of the operator and of the data term."""
    if isinstance(problem, Model):
        known = {key: problem.config[key] for key in _OWN_KEYS if key != "regularizer"}
        return known | {"data_term": describe_data_term(problem.data_term)}, _tensors(
            problem.tensors, problem.data_term
        )
    if isinstance(problem, Regularizer):
        described = {
            "operator": _DENOISING,
            "ridge": 0.0,
            "constraint": None,
            "noise_level": None,
            "data_term": _LEAST_SQUARES,
            "minimiser": "global",
        }
        return described, {}
    if isinstance(problem.noise_level, Tensor):
        raise ConfigError("a noise level for each sample cannot be stored in a model file; save the regularizer.")
    operator, tensors = describe_operator(problem.operator)
    described = {
        "operator": operator,
        "ridge": problem.ridge_value,
        "constraint": None if problem.constraint is None else describe_limits(problem.constraint),
        "noise_level": problem.noise_level,
        "data_term": describe_data_term(problem.data_term),
        "minimiser": problem.minimiser,
    }
    return described, _tensors(tensors, problem.data_term)


def _tensors(of_operator: Mapping[str, Tensor], data_term: DataTerm) -> dict[str, Tensor]:
    return {**of_operator, **{f"{_DATA_TERM}{name}": t for name, t in data_term.stored_tensors().items()}}


def _check_problem(model: Model) -> None:
    """What the lower-level problem checks, whatever its operator and data term."""
    config, regularizer = model.config, model.regularizer
    if config["constraint"] is not None:
        Box(*(real_number(limit, "constraint", finite=False) for limit in open_limits(config["constraint"])))
    LowerLevelProblem(
        Identity((regularizer.image_channels, *(8,) * regularizer.image_dimensions)),
        regularizer,
        ridge=config["ridge"],
        noise_level=config["noise_level"],
        minimiser=config["minimiser"],
    )


_SIDES = {1: "length", 2: "height, width", 3: "depth, height, width"}


def _check_noisy(b: Tensor, regularizer: Regularizer) -> None:
    channels, axes = regularizer.image_channels, regularizer.image_dimensions + 2
    expected = f"(batch, {channels}, {_SIDES[regularizer.image_dimensions]})"
    check_dense(b, "reconstruct(b)", expected)
    if b.dim() == axes and b.shape[1] == channels:
        return
    hint = {axes - 2: " Write b[None, None].", axes - 1: " Add the missing axis with b[None] or b[:, None]."}.get(
        b.dim() if channels == 1 else 0, ""
    )
    if b.dim() == axes and channels == 1:
        hint = " To denoise its channels one by one write b.flatten(0, 1)[:, None]."
    raise ShapeError(f"reconstruct(b): got shape {tuple(b.shape)}, expected {expected}.{hint}")
