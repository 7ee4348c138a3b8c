"""Lower-level and adjoint solvers: one file each, one loop around them."""

from learnreg.solvers.adjoint_pdhg import AdjointPDHG
from learnreg.solvers.base import AdjointSolver, Iteration, Report, Solver, SolverState
from learnreg.solvers.conjugate_gradient import ConjugateGradient
from learnreg.solvers.lbfgs import LBFGS
from learnreg.solvers.loop import LoopResult, iterate
from learnreg.solvers.minres import MINRES
from learnreg.solvers.neumann import Neumann
from learnreg.solvers.newton_cg import NewtonCG
from learnreg.solvers.nonsmooth_pdhg import NonsmoothPDHG
from learnreg.solvers.nystrom import Nystrom
from learnreg.solvers.pdhg import PDHG
from learnreg.solvers.projected_lbfgs import ProjectedLBFGS

__all__ = [
    "LBFGS",
    "MINRES",
    "PDHG",
    "AdjointPDHG",
    "AdjointSolver",
    "ConjugateGradient",
    "Iteration",
    "LoopResult",
    "Neumann",
    "NewtonCG",
    "NonsmoothPDHG",
    "Nystrom",
    "ProjectedLBFGS",
    "Report",
    "Solver",
    "SolverState",
    "iterate",
]
