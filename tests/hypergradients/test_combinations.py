"""Every data term on every kind of image with every regularizer: a sample of small ones, against the energy alone."""

from __future__ import annotations

import itertools

import pytest
from truth.combinations import DATA_TERMS, FAMILIES, KINDS, compared, generator_of

SIDES = {"volume": 3, "signal": 8}
CASES = list(itertools.product(FAMILIES, KINDS, DATA_TERMS))


@pytest.mark.parametrize(("family", "kind", "data_term"), CASES)
@pytest.mark.sampled(share=0.015, by=("family", "kind", "data_term"))
def test_hypergradients_of_combinations(family: str, kind: str, data_term: str, rotating_seed: int) -> None:
    generator = generator_of(family, kind, data_term, rotating_seed)
    found = compared(data_term, kind, family, SIDES.get(kind, 4), generator)
    if found.refused:
        assert family not in ("fields-of-experts", "tv", "tikhonov", "ridge", "multivariate"), found.refused
    elif found.certified:
        assert found.error <= found.bound + 1e-12
        assert max(found.error, found.least_part) <= 1e-6
    else:  # a response may lie on a kink
        assert any(word in family for word in ("absolute", "Huber", "lifted", "imported"))


def test_a_network_is_refused_complex_images_with_what_takes_them() -> None:
    found = compared("LeastSquares", "complex", "icnn", 4, generator_of("icnn", "complex", "LeastSquares", 0))
    assert "RidgeRegularizer" in found.refused
