"""The problems of a chain after the first one: those at weights, and the one that all of them approach."""

from __future__ import annotations

from torch import Tensor

from learnreg.lower_level.chain import Chain
from learnreg.lower_level.frozen import FrozenProblem
from learnreg.lower_level.regularizer import Regularizer

__all__ = ["energy_of_chain", "stage_at"]


def stage_at(frozen: FrozenProblem, places: Tensor, spread: Tensor | float = 0.0) -> FrozenProblem:
    """The problem at these weights (batch, *places), for the data of these samples alone; bounds of its potential hold
    for all weights within ``spread``."""
    first = frozen.first_stage
    found = frozen.with_parts(frozen.operator, first.regularizer)
    # Set, as cached: the operator and what is known of it are those of all stages.
    terms, fixed = (t.weighted(places, spread) for t in (first.terms, first.fixed))
    found.__dict__["terms"], found.__dict__["fixed"] = terms, fixed
    found.__dict__["gram_lower_bound"] = first.gram_lower_bound
    found.__dict__["concavity"] = max(0.0, first.concavity)  # weights in [0, 1] leave no strong convexity of R
    return found


def energy_of_chain(frozen: FrozenProblem, chain: Chain[Regularizer]) -> FrozenProblem | None:
    """The problem whose minimisers, with bounds that hold in balls, the chain approaches; None where it has none."""
    first = frozen.first_stage
    terms = chain.weights.energy_terms(first.fixed)
    if terms is None:
        return None
    problem = frozen.with_parts(frozen.operator, first.regularizer)
    problem.minimiser = "local"
    problem.__dict__["terms"] = problem.__dict__["fixed"] = terms
    return problem
