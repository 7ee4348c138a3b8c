"""Every number the library computes on small problems, recorded before a change and compared after it.

    python benchmarks/same_numbers.py record FILE [--only SUBSTRING] [--quick]
    python benchmarks/same_numbers.py compare FILE [--only SUBSTRING] [--quick]

A change of the code that must not change its results leaves ``compare`` silent: floating-point numbers within a
relative 1e-12 of the largest entry of their tensor (1e-6 in float32), and statuses, kinds of bounds, reasons, steps and
operator applications the same. Names and fields that a change adds are no difference, those it takes away are one.
``--quick`` takes the cases that together need less than a minute; a full recording serves both. Recordings belong to
one machine: other processors and other versions of PyTorch and numba round differently, which ``compare`` says. Only
what the package exports is used.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # of the trainer's worker threads, too

import argparse
import itertools
import platform
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from small_problems import BATCH, NOISE, OPERATORS, PROBLEMS, REGULARIZERS, rand, randn, unrecorded
from torch import Tensor

import learnreg as lr
from learnreg import datasets, operators
from learnreg.operators import ParallelBeam2D

Numbers = dict[str, Any]
"""By field: a tensor, a number, a string, a boolean or None."""

ALLOWED = {torch.float64: 1e-12, torch.float32: 1e-6}
ENDLESS = 1e15  # minutes: the trainer's step size falls with its clock, which so stands still

QUICK_PROBLEMS = ("denoising", "inpainting")
METHODS: dict[str, Callable[[], Any]] = {"implicit": lr.Implicit, "piggyback": lr.Piggyback}

SOLUTION = "x y error_bound bound_kind certified status steps operator_applications solver"
GRADIENT = """gradient error_bound certified bound_kind reason loss loss_interval x X state_error_bound
    adjoint_error_bound status steps operator_applications"""
CERTIFICATE = """error_bound gradient gradient_error_bound loss loss_interval certified bound_kind reason X
    adjoint_error_bound gradient_error_estimate loss_estimate corrected_gradient corrected_error_bound
    operator_applications"""
STEP = """accepted certified step_size loss loss_interval decrease gradient_norm gradient_bound backtracks
    operator_applications stationary"""


def read(names: str, call: Callable[[], Any], label: str = "") -> Numbers:
    """These attributes of what a call returns, or the error it raises."""
    try:
        result = call()
    except lr.LearnregError as error:
        return {f"{label}raises": f"{type(error).__name__}: {error}"}
    return flat({name: getattr(result, name) for name in names.split()}, label)


def flat(values: dict[str, Any], label: str = "") -> Numbers:
    """With names that tell where a value was nested; tensors as they are now."""
    found: Numbers = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= flat(value, f"{label}{name}.")
        elif isinstance(value, tuple):
            found[label + name] = torch.tensor(value, dtype=torch.float64)
        elif isinstance(value, lr.Status):
            found[label + name] = value.name
        else:
            found[label + name] = value.detach().clone() if isinstance(value, Tensor) else value
    return found


def solving(problem: Any, b: Tensor, _: Any, tolerance: float, dtype: str = "float64") -> Numbers:
    return read(SOLUTION, partial(lr.solve, problem, b.to(getattr(torch, dtype)), tolerance))


def differentiating(problem: Any, b: Tensor, loss: Any, method: str, tolerance: float) -> Numbers:
    return read(GRADIENT, partial(lr.hypergradient, problem, b, loss, METHODS[method](), tolerance))


def certifying(problem: Any, b: Tensor, loss: Any) -> Numbers:
    """Both certificates of a rough solution, and one with an adjoint state."""
    found = read("x", partial(lr.solve, problem, b, 1e-2))
    if "x" in found:
        judge, X = partial(lr.certify, problem, b, loss, found["x"]), -0.5 * loss.gradient(found["x"])
        found |= read(CERTIFICATE, partial(judge, None, "published"), "published.")
        found |= read(CERTIFICATE, judge, "sharp.") | read(CERTIFICATE, partial(judge, X), "given.")
    return found


def evaluating(problem: Any, b: Tensor, loss: Any) -> Numbers:
    """The energy and two derivatives."""
    x, learnable = loss.x_true.clone().requires_grad_(), problem.learnable()
    energy = problem.energy(x, b)
    (slope,) = torch.autograd.grad(energy.sum(), x, create_graph=True)
    second = torch.autograd.grad((slope * randn(*x.shape, seed=32)).sum(), (x, *learnable.values()))
    values = {"value": problem.active_regularizer.value(x), "energy": energy, "slope": slope}
    return flat({**values, "second": dict(zip(("x", *learnable), second, strict=True))})


def layering(problem: Any, b: Tensor, _: Any, method: str) -> Numbers:
    """A solution as a layer, forward and backward."""
    b, learnable = b.clone().requires_grad_(), problem.learnable()
    x = lr.solution_layer(problem, METHODS[method](), 1e-3)(b)
    slopes = torch.autograd.grad((x * randn(*x.shape, seed=33)).sum(), (b, *learnable.values()))
    return flat({"x": x, "slope": dict(zip(("b", *learnable), slopes, strict=True))})


def training(problem: Any, b: Tensor, loss: Any, optimizer: Any) -> Numbers:
    """One update by the trainer."""
    pairs = list(zip(b, loss.x_true, strict=True))
    run = partial(lr.train, problem, pairs, minutes=ENDLESS, optimizer=optimizer, updates=1)
    found = read("rows updates operator_applications", run)
    for row in found.pop("rows", []):
        found |= flat({name: value for name, value in row.items() if name != "seconds"}, "row.")
    return found | flat(dict(problem.learnable()), "learned.")


def descending(problem: Any, b: Tensor, loss: Any) -> Numbers:
    """Two steps with a certified decrease."""
    objective, descent, found = lr.BatchObjective(problem, b, loss), lr.AdaptiveDescent(), Numbers()
    for number in ("first", "second"):
        found |= read(STEP, partial(descent.step, objective), f"{number}.")
        found |= flat(dict(problem.learnable()), f"{number}.learned.")
    return found


def choosing(problem: Any, b: Tensor, loss: Any) -> Numbers:
    """Solvers, methods, certificates, losses, starts and limits other than those by default."""
    x_true, found = loss.x_true, Numbers()
    solves: dict[str, dict[str, Any]] = {name: {"solver": name} for name in ("pdhg", "lbfgs", "newton-cg")}
    for name, chosen in {**solves, "limited": {"max_steps": 2}, "started": {"start": x_true}}.items():
        found |= read(SOLUTION, partial(lr.solve, problem, b, 1e-3, **chosen), f"{name}.")
    gradients: dict[str, dict[str, Any]] = {
        "interleaved": {"method": lr.Piggyback("interleaved")},
        "pdhg-piggyback": {"method": lr.Implicit("piggyback", state_solver="pdhg")},
        "newton-cg-cg": {"method": lr.Implicit("cg", state_solver="newton-cg")},
        "published-certificate": {"certificate": "published"},
        "warm": {"start": lr.Start(x_true, 0.1 * b)},
        "absolute": {"absolute_tolerance": 0.05},
        "few-steps": {"tolerance": 1e-4, "max_steps": 3},
        "scalar-loss": {"loss": lr.UpperLoss(lambda x: torch.log(1.0 + ((x - x_true) ** 2).sum()), 2.0)},
        "undeclared-loss": {"loss": lr.UpperLoss(lambda x: ((x - x_true) ** 2).flatten(1).sum(1))},
    }
    for name, chosen in gradients.items():
        call = partial(lr.hypergradient, problem, b, **{"loss": loss, "tolerance": 1e-1, **chosen})
        found |= read(GRADIENT, call, f"{name}.")
    return found


@torch.no_grad()
def applying(operator: str) -> Numbers:
    A = OPERATORS[operator]()
    x, y = randn(BATCH, *A.domain_shape, seed=44), randn(BATCH, *A.range_shape, seed=45)
    bounds = {"norm": A.norm_bound(), "kind": A.norm_bound_kind, "modulus": A.gram_lower_bound()}
    return flat({"forward": A(x), "adjoint": A.adjoint(y), "inverse": A.approximate_inverse(y), **bounds})


def drawing() -> Numbers:
    """Data sets, and filtered back-projection."""
    images, projector = datasets.ellipse_phantoms(2, 16), ParallelBeam2D(16, 12)
    pairs = {
        "patch": datasets.DenoisingPatches(list(images), 0.1, 8)[1],
        "scan": datasets.TomographyPairs(projector, images)[1],
        "counts": datasets.TomographyPairs(projector, images, datasets.PhotonNoise(1e4))[1],
    }
    back = operators.filtered_back_projection(projector, projector(images.double()), "hann")
    return flat({"phantoms": images, "back": back, **{name: {"b": p[0], "x": p[1]} for name, p in pairs.items()}})


def cases() -> Iterator[tuple[str, bool, Callable[[], Numbers]]]:
    """Every case: its name, whether it is a quick one, and what computes its numbers."""
    yield "data", True, drawing
    for name in OPERATORS:
        yield f"apply/{name}", True, partial(applying, name)
    for name, kind in itertools.product(REGULARIZERS, PROBLEMS):
        for what, quick, compute, *options in computations(kind):
            case = "/".join((what, name, kind, *map(str, options)))
            yield case, quick and kind in QUICK_PROBLEMS, partial(computed, compute, name, kind, *options)


def computations(kind: str) -> Iterator[tuple[Any, ...]]:
    """Name, whether it is quick, function, and options besides problem, data and loss: more for denoising than for
    others. The tolerance 1e-17 cannot be met: steps end where rounding makes them, and any change of it is seen."""
    yield "certify", True, certifying
    yield from (("solve", t == 1e-2, solving, t) for t in (1e-2, 1e-4))
    yield from (("gradient", t == 1e-1, differentiating, m, t) for m in METHODS for t in (1e-1, 1e-3))
    if kind == "denoising":
        yield from (("evaluate", True, evaluating), ("descend", True, descending), ("choose", False, choosing))
        yield from (("train", name == "adam", training, name) for name in ("adam", "lbfgs"))
        yield from (("solve", t == 1e-2, solving, t, "float32") for t in (1e-2, 1e-7))
        yield from (("layer", m == "implicit", layering, m) for m in METHODS)
        yield "solve", False, solving, 1e-17


def computed(compute: Callable[..., Numbers], regularizer: str, kind: str, *options: Any) -> Numbers:
    """With a problem made anew, so that no case depends on what others left behind."""
    operator, *rest = PROBLEMS[kind]()
    parts = dict(zip(("ridge", "data_term", "constraint"), rest, strict=False))
    problem = lr.LowerLevelProblem(operator, REGULARIZERS[regularizer](), noise_level=NOISE, **parts)
    x_true = rand(BATCH, *operator.domain_shape, seed=30)
    b = operator(x_true).detach()
    return compute(problem, b + NOISE * randn(*b.shape, seed=31), lr.SquaredError(x_true), *options)


def machine() -> dict[str, str]:
    """What rounding depends on."""
    installed = {name: version(name) if find_spec(name) else "none" for name in ("torch", "numba", "numpy")}
    return {**installed, "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"}


def differences(old: Numbers, new: Numbers) -> list[str]:
    """What differs, by field."""
    found = [f"{field} is new: {new[field]}" for field in new if field.endswith("raises") and field not in old]
    for field, value in old.items():
        change = difference(value, new[field]) if field in new else f"{value!r} -> gone"
        found += [f"{field}: {change}"] if change else []
    return found


def difference(old: Any, new: Any) -> str:
    """How a value differs; empty where it does not, up to rounding."""
    if not (isinstance(old, (float, Tensor)) and isinstance(new, (float, Tensor))):
        return "" if type(old) is type(new) and old == new else f"{old!r} -> {new!r}"
    a, b = (torch.as_tensor(v, dtype=getattr(v, "dtype", torch.float64)) for v in (old, new))
    if a.shape != b.shape or a.dtype != b.dtype:
        return f"{tuple(a.shape)} of {a.dtype} -> {tuple(b.shape)} of {b.dtype}"
    finite = a.isfinite() & b.isfinite()
    if not torch.allclose(a[~finite], b[~finite], rtol=0.0, atol=0.0, equal_nan=True):
        return f"{old!r} -> {new!r}"
    a, b = a[finite], b[finite]
    size, change = (float(t.abs().max()) if len(t) else 0.0 for t in (a, b - a))
    if change <= ALLOWED[a.dtype] * size:
        return ""
    worst = int((b - a).abs().argmax())
    return f"{float(a[worst]):.17g} -> {float(b[worst]):.17g}, {change / max(size, 1e-300):.1e} of the largest"


def compare(recorded: dict[str, Numbers], chosen: dict[str, Callable[[], Numbers]]) -> int:
    """Print every case that differs; how many do."""
    differing = 0
    for name, compute in chosen.items():
        try:
            found = differences(recorded[name], compute())
        except Exception as error:  # of the code that is compared
            found = [f"{type(error).__name__}: {error}"]
        if found:
            differing += 1
            shown = "; ".join(" ".join(change.split())[:200] for change in found[:4])
            print(f"{name}: {len(found)} of {len(recorded[name])} fields; {shown}", flush=True)
    return differing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("record", "compare"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--only", default="", help="cases whose names contain this")
    parser.add_argument("--quick", action="store_true", help="cases that take less than a minute")
    options, began = parser.parse_args(), time.process_time()
    torch.set_num_threads(1)
    chosen = {name: compute for name, quick, compute in cases() if options.only in name and quick >= options.quick}
    if options.action == "record":
        if missing := unrecorded():
            sys.exit(f"no entry of REGULARIZERS has {', '.join(missing)}")
        numbers = {name: compute() for name, compute in chosen.items()}
        torch.save({"machine": machine(), "numbers": numbers}, options.file)
        print(f"{len(numbers)} cases recorded in {time.process_time() - began:.0f} s of CPU")
        return
    stored = torch.load(options.file)
    if stored["machine"] != machine():
        print(f"recorded with {stored['machine']}, compared with {machine()}: rounding may differ")
    known = {name: compute for name, compute in chosen.items() if name in stored["numbers"]}
    differing, rest = compare(stored["numbers"], known), f"{len(chosen) - len(known)} are not in the recording"
    print(f"{differing} of {len(known)} cases differ, {rest}; {time.process_time() - began:.0f} s of CPU")
    sys.exit(1 if differing or not known else 0)


if __name__ == "__main__":
    main()
