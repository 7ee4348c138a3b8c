"""The properties as tests of your own suite: subclass, say how to make the object, and pytest (or unittest's loader)
finds one test for each property.

    class TestMyOperator(OperatorTests):
        def make(self):
            return MyOperator((1, 64, 64))
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch

from learnreg.testing.case import operator_case
from learnreg.testing.operators import OPERATOR_PROPERTIES
from learnreg.testing.regularizers import REGULARIZER_PROPERTIES
from learnreg.testing.report import failure, run_check
from learnreg.testing.values import regularizer_case

__all__ = ["OperatorTests", "RegularizerTests"]


class OperatorTests:
    """One test for each property of ``check_operator``, on a fresh operator from ``make``.

    Set ``dtype = torch.float32`` for an operator of single precision, ``adjoint_tolerance`` for one whose adjoint is
    knowingly less exact. ``skip`` names properties to leave out.

    Examples
    --------
    >>> class TestMine(lr.testing.OperatorTests):  # found by pytest
    ...     def make_operator(self):
    ...         return lr.operators.Identity((1, 4, 4))
    """

    dtype: torch.dtype = torch.float64
    adjoint_tolerance: float | None = None
    seed: int = 0
    skip: ClassVar[frozenset[str]] = frozenset()

    def make(self) -> Any:
        """The operator under test."""
        raise NotImplementedError(f"{type(self).__name__}.make() has to return the operator under test.")

    def _case(self) -> Any:
        return operator_case(self.make(), self.dtype, self.adjoint_tolerance, None, self.seed)


class RegularizerTests:
    """One test for each property of ``check_regularizer``, on a fresh regularizer from ``make``.

    ``image_shape``: of the images, without the batch axis; by default as in ``check_regularizer``.

    Examples
    --------
    >>> class TestMine(lr.testing.RegularizerTests):  # found by pytest
    ...     def make_regularizer(self):
    ...         return lr.regularizers.TotalVariation(0.1)
    """

    dtype: torch.dtype = torch.float64
    image_shape: tuple[int, ...] | None = None
    seed: int = 0
    skip: ClassVar[frozenset[str]] = frozenset()

    def make(self) -> Any:
        """The regularizer under test."""
        raise NotImplementedError(f"{type(self).__name__}.make() has to return the regularizer under test.")

    def _case(self) -> Any:
        return regularizer_case(self.make(), self.image_shape, self.dtype, self.seed)


def _test_of(name: str, check: Callable[[Any], Any]) -> Callable[[Any], None]:
    def test(self: Any) -> None:
        if name in self.skip:
            return
        case = self._case()
        found = run_check(name, check, case)
        if not found.passed:
            raise failure(type(self).__name__, found)

    test.__name__ = f"test_{re.sub(r'[^a-z0-9]+', '_', name.lower())}"
    test.__doc__ = check.__doc__
    return test


def _add_tests(suite: type, properties: Mapping[str, Callable[[Any], Any]]) -> None:
    for name, check in properties.items():
        test = _test_of(name, check)
        setattr(suite, test.__name__, test)


_add_tests(OperatorTests, OPERATOR_PROPERTIES)
_add_tests(RegularizerTests, REGULARIZER_PROPERTIES)
