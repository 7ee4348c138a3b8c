"""Acceptance checks for operators and regularizers of your own: ``check_operator``, ``check_regularizer``; as tests of
your own suite, one for each property: ``OperatorTests``, ``RegularizerTests``."""

from learnreg.testing.operators import OPERATOR_PROPERTIES, check_operator, examine_operator
from learnreg.testing.regularizers import REGULARIZER_PROPERTIES, check_regularizer, examine_regularizer
from learnreg.testing.report import Property, Report
from learnreg.testing.suite import OperatorTests, RegularizerTests

__all__ = [
    "OPERATOR_PROPERTIES",
    "REGULARIZER_PROPERTIES",
    "OperatorTests",
    "Property",
    "RegularizerTests",
    "Report",
    "check_operator",
    "check_regularizer",
    "examine_operator",
    "examine_regularizer",
]
