"""Which solver runs: what a name stands for, what "auto" means, and what goes on where one ends early."""

from __future__ import annotations

from typing import Any, Literal

from learnreg.errors import ConfigError
from learnreg.lower_level.banded import BandedPotential
from learnreg.lower_level.instance import Instance
from learnreg.solvers.adjoint_pdhg import AdjointPDHG
from learnreg.solvers.banded_lbfgs import BandedLBFGS
from learnreg.solvers.base import AdjointSolver, Solver
from learnreg.solvers.conjugate_gradient import ConjugateGradient
from learnreg.solvers.lbfgs import LBFGS
from learnreg.solvers.minres import MINRES
from learnreg.solvers.neumann import Neumann
from learnreg.solvers.newton_cg import NewtonCG
from learnreg.solvers.nonsmooth_pdhg import NonsmoothPDHG
from learnreg.solvers.nystrom import Nystrom
from learnreg.solvers.pdhg import PDHG, proximal_obstacle
from learnreg.solvers.preconditioner import can_precondition
from learnreg.solvers.projected_lbfgs import ProjectedLBFGS

__all__ = [
    "ADJOINT_SOLVERS",
    "FALLBACKS",
    "SOLVERS",
    "AdjointSolverName",
    "SolverName",
    "adjoint_obstacle",
    "check_adjoint_solver",
    "check_proximal",
    "check_solver",
    "fits_pdhg",
    "make_adjoint_solver",
    "make_solver",
]

SolverName = Literal["auto", "pdhg", "lbfgs", "newton-cg"]
AdjointSolverName = Literal["auto", "cg", "piggyback", "minres", "neumann", "nystrom"]

SOLVERS: dict[str, type[Solver[Any]]] = {"pdhg": PDHG, "lbfgs": LBFGS, "newton-cg": NewtonCG}

ADJOINT_SOLVERS: dict[str, type[AdjointSolver[Any]]] = {
    "cg": ConjugateGradient,
    "piggyback": AdjointPDHG,
    "minres": MINRES,
    "neumann": Neumann,
    "nystrom": Nystrom,
}

FALLBACKS = ("newton-cg", "pdhg", "continuation")
"""What goes on, one after the other, where a solver ends early."""

_ILL_CONDITIONED, _LOOSE = 1000.0, 3e-3


def make_solver(solver: SolverName | Solver[Any], instance: Instance, warm: bool = False) -> Solver[Any]:
    """The solver of that name, or the one given. "auto", by operator applications on trained models
    (docs/benchmarks.md): L-BFGS where it has a preconditioner, and for latent variables under constraints; else from a
    cold start PDHG where the data term is diagonal (denoising and inpainting by total variation), L-BFGS otherwise;
    from a warm one L-BFGS, since a good x without its dual iterate is of little use to PDHG, or Newton-CG for free
    latent variables. With a constraint, and for potentials whose values along a line cost as much as a step, L-BFGS is
    the projected one, and for large images that by bands. PDHG needs proximal maps."""
    if not instance.potential.differentiable:
        return _nonsmooth(solver)
    if isinstance(solver, Solver):
        return _fitting(solver, instance)
    if not isinstance(solver, str) or solver not in ("auto", *SOLVERS):
        raise ConfigError(
            f"solver={solver!r}: expected 'auto', {', '.join(map(repr, SOLVERS))} or an object of learnreg.solvers."
        )
    name: str = solver
    if name == "auto":
        latent = instance.latent
        if fits_pdhg(instance) and not (can_precondition(instance) or latent.nonnegative or warm):
            name = "pdhg"
        else:
            name = "newton-cg" if latent.channels and not latent.nonnegative else "lbfgs"
    if name == "lbfgs" and (instance.box.constrains or not instance.potential.cheap_lines):
        banded = isinstance(instance.potential, BandedPotential) and not instance.box.constrains
        return BandedLBFGS() if banded else ProjectedLBFGS()
    if name == "pdhg":
        check_proximal(instance, "solver='pdhg'", "'auto', 'lbfgs' or 'newton-cg'")
    return SOLVERS[name]()


def _nonsmooth(solver: SolverName | Solver[Any]) -> Solver[Any]:
    """The solver for potentials without a gradient, under its own name or that of PDHG."""
    if isinstance(solver, NonsmoothPDHG) or (isinstance(solver, str) and solver in ("auto", "pdhg")):
        return solver if isinstance(solver, NonsmoothPDHG) else NonsmoothPDHG()
    if type(solver) is PDHG:
        return NonsmoothPDHG(solver.check_every)
    shown = repr(solver) if isinstance(solver, str) else f"{type(solver).__name__}()"
    raise ConfigError(
        f"solver={shown}: it needs a gradient of the potential, which AbsoluteValue does not have at 0; use 'auto' or "
        "'pdhg', or lr.PseudoHuber with a small smoothing."
    )


def _fitting(solver: Solver[Any], instance: Instance) -> Solver[Any]:
    if isinstance(solver, NonsmoothPDHG):
        raise ConfigError("solver=NonsmoothPDHG(): it is for the potential AbsoluteValue alone; use PDHG().")
    if isinstance(solver, PDHG):
        check_proximal(instance, "solver=PDHG()", "LBFGS(), ProjectedLBFGS() or NewtonCG()")
    if isinstance(solver, LBFGS) and instance.box.constrains:
        raise ConfigError("solver=LBFGS(): it knows no constraint; use ProjectedLBFGS() or NewtonCG().")
    return solver


def make_adjoint_solver(
    solver: AdjointSolverName | AdjointSolver[Any], instance: Instance, warm: bool, relative: float
) -> AdjointSolver[Any]:
    """The adjoint solver of that name, or the one given. "auto", by operator applications (docs/benchmarks.md):
    conjugate gradients where they have a preconditioner; else the piggyback iteration from a cold start on
    ill-conditioned problems at loose relative residuals, conjugate gradients otherwise."""
    if isinstance(solver, str) and solver == "auto":
        obstacle = instance.potential.prox_obstacle() or can_precondition(instance) or warm
        fits = not (obstacle or instance.latent.channels) and fits_pdhg(instance)
        fits = fits and instance.strong_convexity > 0
        hard = fits and relative >= _LOOSE and instance.condition_bound() >= _ILL_CONDITIONED
        return AdjointPDHG() if hard else ConjugateGradient()
    chosen = _adjoint_solver(solver)
    if why := chosen.obstacle(instance):
        raise ConfigError(f"Implicit(solver='{chosen.name}'): {why}; use 'auto' or 'cg'.")
    return chosen


def adjoint_obstacle(solver: AdjointSolverName | AdjointSolver[Any], instance: Instance) -> str:
    """Why ``make_adjoint_solver`` refuses the problem; "" where it does not."""
    return "" if solver == "auto" else _adjoint_solver(solver).obstacle(instance)


def _adjoint_solver(solver: str | AdjointSolver[Any]) -> AdjointSolver[Any]:
    return ADJOINT_SOLVERS[solver]() if isinstance(solver, str) else solver


def check_adjoint_solver(solver: AdjointSolverName | AdjointSolver[Any]) -> None:
    """ConfigError unless it is the name of an adjoint solver, or one."""
    known = isinstance(solver, str) and solver in ("auto", *ADJOINT_SOLVERS)
    if not known and not isinstance(solver, AdjointSolver):
        raise ConfigError(
            f"Implicit(solver={solver!r}): expected 'auto', {', '.join(map(repr, ADJOINT_SOLVERS))} or an adjoint "
            "solver of learnreg.solvers; state_solver= is the one of the lower level."
        )


def check_solver(solver: SolverName | Solver[Any], call: str) -> SolverName | Solver[Any]:
    """The lower-level solver, or ConfigError unless it is one, or a name."""
    if isinstance(solver, (str, Solver)):
        return solver
    raise ConfigError(f"{call}(state_solver={solver!r}): expected a name or an object of learnreg.solvers.")


def fits_pdhg(instance: Instance) -> bool:
    """Whether the primal-dual iteration has both its proximal maps, and a data term in the primal one."""
    M = instance.quadratic
    return not instance.potential.prox_obstacle() and M.is_diagonal and not M.is_ridge


def check_proximal(instance: Instance, call: str, instead: str) -> None:
    """ConfigError where a primal-dual iteration is asked for and the potential has no proximal maps."""
    if why := proximal_obstacle(instance):
        raise ConfigError(f"{call}: {why}; use {instead}.")
