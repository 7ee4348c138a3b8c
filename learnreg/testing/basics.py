"""Properties of both maps that everything else rests on: shapes, dtypes, purity, batches, linearity."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable

import torch
from torch import Tensor

from learnreg.testing.case import Direction, OperatorCase, largest, norms
from learnreg.testing.report import Property, broken, holds, judged, skipped

__all__ = [
    "check_batch",
    "check_determinism",
    "check_device",
    "check_dtype",
    "check_finite",
    "check_linearity",
    "check_precision",
    "check_purity",
    "check_shape",
    "has_single_precision",
]

_FACTORS = (-2.5, 1e-3, 1e3)
_BATCHES = (1, 3)


@torch.no_grad()
def check_shape(case: OperatorCase) -> Property:
    """(batch, *domain_shape) becomes (batch, *range_shape), and the other way round."""
    for direction in case.directions:
        result = _in_some_dtype(direction, case.randn(2, direction.source))
        got = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
        if got != (2, *direction.target):
            expected = (2, *direction.target)
            return broken(
                "shape", f"{direction.name} of a tensor {(2, *direction.source)} returned {got}, expected {expected}"
            )
    return holds("shape", "results have the shapes of the operator")


def _in_some_dtype(direction: Direction, x: Tensor) -> Tensor:
    """The result in the dtype of x, or in the other precision where that is refused: dtypes are another property."""
    try:
        return direction.apply(x)
    except Exception:
        other = torch.float32 if x.dtype == torch.float64 else torch.float64
        with contextlib.suppress(Exception):
            return direction.apply(x.to(other))
        raise


@torch.no_grad()
def check_dtype(case: OperatorCase) -> Property:
    """The result has the dtype of the input: in float32 and float64, or in float32 alone if that is what was asked
    for."""
    wanted = (torch.float32, torch.float64) if case.dtype == torch.float64 else (case.dtype,)
    for direction in case.directions:
        for dtype in wanted:
            x = case.randn(1, direction.source).to(dtype)
            try:
                got = direction.apply(x).dtype
            except Exception as error:
                text = " ".join(str(error).split())[:200]
                hint = f"convert constants with .to(x.dtype){_single(dtype)}"
                return broken(
                    "dtype", f"{direction.name} of {_short(dtype)} raised {type(error).__name__}: {text}; {hint}"
                )
            if got != dtype:
                hint = f"convert the result with .to(x.dtype){_single(dtype)}"
                return broken("dtype", f"{direction.name} of {_short(dtype)} returned {_short(got)}; {hint}")
    return holds("dtype", f"results keep {' and '.join(map(_short, wanted))}")


def _single(dtype: torch.dtype) -> str:
    hint = "an operator of single precision alone is checked with dtype=torch.float32"
    return f"; {hint}" if dtype == torch.float64 else ""


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@torch.no_grad()
def check_precision(case: OperatorCase) -> Property:
    """Results in float64 have the digits of float64."""
    if case.dtype != torch.float64:
        return skipped("precision", "in float64 alone")
    for direction in case.directions:
        if has_single_precision(direction.apply(case.randn(1, direction.source))):
            return broken(
                "precision", f"{direction.name} of float64 has the digits of float32 alone{_single(case.dtype)}"
            )
    return holds("precision", "results have the digits of float64")


def has_single_precision(result: Tensor) -> bool:
    """Whether every number of a float64 tensor, not all of them 0, is one of float32."""
    rounded = result.float().double() == result
    return bool((rounded & torch.isfinite(result)).all()) and bool((result != 0).any())


@torch.no_grad()
def check_device(case: OperatorCase) -> Property:
    """The result is where the input is."""
    for direction in case.directions:
        got = direction.apply(case.randn(1, direction.source)).device
        if got != case.device:
            return broken("device", f"{direction.name} of a tensor on {case.device} returned one on {got}")
    return holds("device", f"results stay on {case.device}")


@torch.no_grad()
def check_finite(case: OperatorCase) -> Property:
    """No NaN or infinity for finite inputs of any kind."""
    for direction in case.directions:
        result = direction.apply(case.probes(direction.source))
        bad = int((~torch.isfinite(result)).sum())
        if bad:
            return broken("finite", f"{direction.name} of finite inputs has {bad} NaN or infinite entries", float(bad))
    return holds("finite", "results are finite")


@torch.no_grad()
def check_determinism(case: OperatorCase) -> Property:
    """Two calls agree."""
    value, name = 0.0, "forward"
    for direction in case.directions:
        x = case.probes(direction.source)
        first = direction.apply(x.clone()).clone()
        found = largest(direction.apply(x.clone()) - first, first, _typical(first, len(x)))
        if not found <= value:
            value, name = found, direction.name
    wrong = f"two calls of {name} with the same input differ; take randomness out of it (dropout, simulated noise)"
    return judged("determinism", value, case.rounding, "relative difference of two calls", wrong)


@torch.no_grad()
def check_purity(case: OperatorCase) -> Property:
    """Inputs are left alone, and results are memory of their own: writing to one changes neither the input nor what the
    next call returns, and no later call changes an earlier result."""
    for direction in case.directions:
        wrong = _impurity(case, direction)
        if wrong:
            return broken("purity", wrong)
    return holds("purity", "inputs are unchanged, results have memory of their own")


def _impurity(case: OperatorCase, direction: Direction) -> str:
    x, other = case.randn(2, direction.source), case.randn(2, direction.source)
    kept = x.clone()
    result = direction.apply(x)
    if not torch.equal(x, kept):
        return f"{direction.name} changes its input in place; work on a copy"
    own = result.clone()
    direction.apply(other)
    if not torch.equal(result, own):
        return f"a later call of {direction.name} changes an earlier result: it returns memory it keeps; return a copy"
    try:
        result.add_(1.0)
    except RuntimeError:
        return f"{direction.name} returns a tensor whose entries share memory (expand?); return .contiguous()"
    shared_with_input = not torch.equal(x, kept)
    shared_with_operator = largest(direction.apply(kept.clone()) - own, own) > case.rounding
    result.copy_(own)  # what was written to may be the operator's own memory
    if shared_with_input:
        return (
            f"the result of {direction.name} is its input or a view of it, so that writing to it changes the input; "
            "return x.clone()"
        )
    if shared_with_operator:
        return (
            f"the result of {direction.name} is a view of memory that the operator keeps: writing to it changes what "
            "the next call returns; return a copy"
        )
    return ""


@torch.no_grad()
def check_batch(case: OperatorCase) -> Property:
    """Samples are independent: a batch gives what its samples give one by one. An empty batch may be refused."""
    value, name, note = 0.0, "forward", ""
    for direction in case.directions:
        x = case.probes(direction.source)[: max(_BATCHES)]
        alone = torch.cat([direction.apply(x[i : i + 1].clone()).clone() for i in range(x.shape[0])])
        for batch in _BATCHES:
            found = largest(direction.apply(x[:batch].clone()) - alone[:batch], alone[:batch], _typical(alone, batch))
            if not found <= value:
                value, name = found, direction.name
        try:
            empty = tuple(direction.apply(x[:0]).shape)
        except Exception:
            note = "; empty batches are refused"
        else:
            if empty != (0, *direction.target):
                return broken("batch", f"{direction.name} of an empty batch has shape {empty}")
    wrong = f"{name} of a batch is not {name} of each sample; samples must not share means, norms or maxima"
    measured = f"relative difference between a batch and its samples{note}"
    return judged("batch", value, case.rounding, measured, wrong)


def _typical(results: Tensor, batch: int) -> Tensor:
    """The largest norm of all samples: where one sample gives nearly nothing, rounding is measured against the rest."""
    return norms(results).max().expand(batch)


@torch.no_grad()
def check_linearity(case: OperatorCase) -> Property:
    """A(s x) = s A x for positive, negative, small and large s, and A(x + z) = A x + A z, for both maps."""
    for direction in case.directions:
        value, wrong = _nonlinearity(case, direction)
        if not value <= case.rounding:
            return judged("linearity", value, case.rounding, "relative error of linearity", wrong)
    return judged("linearity", value, case.rounding, "relative error of linearity", "")


def _nonlinearity(case: OperatorCase, direction: Direction) -> tuple[float, Callable[[], str]]:
    x, z = case.probes(direction.source), case.randn(1, direction.source)
    image, image_z, sum_image = (direction.apply(t.clone()).clone() for t in (x, z, x + z))
    scale = norms(image).max().expand(len(x))
    scale = torch.maximum(scale, norms(image_z).expand(len(x)))
    worst, wrong = largest(sum_image - image - image_z, scale), f"{direction.name}(x + z) is not the sum of the images"
    for factor in _FACTORS:
        found = largest(direction.apply(factor * x) - factor * image, abs(factor) * scale)
        if not found <= worst:
            worst, wrong = found, f"{direction.name}({factor:g} x) is not {factor:g} {direction.name}(x)"

    def explain() -> str:
        at_zero = norms(direction.apply(torch.zeros_like(z)))
        if float(at_zero) > case.rounding * float(scale.max()):
            return f"{direction.name}(0) is not 0: a constant is added (move it into the data b)"
        return f"{wrong}; clamp, abs, thresholds and normalisations by the input are not linear"

    return (worst if math.isfinite(worst) else math.inf), explain
