"""Regularizers: convex functions of an image with learnable parameters."""

from learnreg.lower_level.regularizer import Regularizer
from learnreg.regularizers.analysis import AnalysisOperator
from learnreg.regularizers.fields_of_experts import FieldsOfExperts
from learnreg.regularizers.imported import ImportedRidge
from learnreg.regularizers.input_convex import InputConvexNetwork
from learnreg.regularizers.learned_tgv import LearnedTotalGeneralizedVariation
from learnreg.regularizers.learned_total_variation import LearnedTotalVariation
from learnreg.regularizers.multivariate import MultivariateExperts
from learnreg.regularizers.ridge import RidgeRegularizer
from learnreg.regularizers.ridge_files import import_ridge
from learnreg.regularizers.scaled import Scaled
from learnreg.regularizers.total_variation import TotalVariation

__all__ = [
    "AnalysisOperator",
    "FieldsOfExperts",
    "ImportedRidge",
    "InputConvexNetwork",
    "LearnedTotalGeneralizedVariation",
    "LearnedTotalVariation",
    "MultivariateExperts",
    "Regularizer",
    "RidgeRegularizer",
    "Scaled",
    "TotalVariation",
    "import_ridge",
]
