"""How hard a lower-level problem is to solve."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from learnreg.lower_level.frozen import FrozenProblem
from learnreg.lower_level.problem import LowerLevelProblem

__all__ = ["Conditioning", "conditioning", "weak_convexity"]


@dataclass(frozen=True)
class Conditioning:
    """Of a lower-level energy: ``lipschitz`` bounds the curvature of its smooth part from above, ``modulus`` that of
    all from below; 0 where none is known. *Rigorous bounds* where the norms of the operators are."""

    lipschitz: float
    modulus: float

    @property
    def condition_number(self) -> float:
        """An upper bound of that of the Hessian, at every image."""
        return self.lipschitz / self.modulus if self.modulus > 0 else math.inf


def conditioning(problem: LowerLevelProblem | FrozenProblem, b: Tensor) -> Conditioning:
    """Of the problem at measurements b, with batch axis; of a chain that of its first one, whose terms all weigh 1."""
    instance = problem.frozen().first_stage.at(b)
    return Conditioning(instance.gradient_lipschitz(), instance.strong_convexity)


def weak_convexity(problem: LowerLevelProblem) -> dict[str, float]:
    """For the summary of a run, how much of the modulus of data term and ridge a weakly convex regularizer takes;
    nothing of a convex one."""
    taken = problem.frozen().concavity
    return {"concavity": taken} if taken > 0 else {}
