"""Names that users import: each stays importable where it is."""

from __future__ import annotations

import importlib

import pytest

NAMES = {
    "learnreg": """
        AdaptiveDescent AssumptionError BatchObjective Box Certificate CheckpointError ConfigError DataError
        Huber Hypergradient Implicit LearnregError LeastSquares LinearOperator LogCosh LowerLevelProblem Model
        Nonnegative OperatorError Piggyback PseudoHuber ShapeError Solution SolverError SquaredError Start
        Status TrainResult TransmissionLeastSquares UpperLoss WeightedLeastSquares certify hypergradient load
        pretrained regularizers solution_layer solve testing train vstack
    """,
    "learnreg.datasets": """
        BSDS500 CT_WINDOW DenoisingPatches DicomSeries DicomSlice ImageFolder LineIntegrals LoDoPaB PhotonNoise
        RelativeNoise TomographyPairs add_noise ellipse_phantom ellipse_phantoms find_series line_integrals
        list_images load_ct_images load_training_images natural_images parse_sigma read_array read_dicom
        read_dicom_series read_hdf5_array read_image read_sinogram resize_slice statistical_weights
        window_hounsfield
    """,
    "learnreg.operators": """
        Blur CartesianMRI ConeBeam3D FanBeam2D FanGeometry FourierSampling Identity Inpainting ParallelBeam2D
        ParallelGeometry as_channels as_complex assemble filtered_back_projection from_astra from_callables from_deepinv
        from_geometry from_mrinufft from_mrpro from_odl from_pylops from_scipy from_sigpy to_odl to_scipy
    """,
    "learnreg.regularizers": """
        AnalysisOperator FieldsOfExperts ImportedRidge InputConvexNetwork LearnedTotalGeneralizedVariation
        LearnedTotalVariation MultivariateExperts Regularizer RidgeRegularizer Scaled TotalVariation
        import_ridge
    """,
    "learnreg.solvers": """
        AdjointPDHG AdjointSolver ConjugateGradient Iteration LBFGS LoopResult NewtonCG PDHG ProjectedLBFGS
        Report Solver SolverState iterate
    """,
    "learnreg.testing": """
        OPERATOR_PROPERTIES OperatorTests Property REGULARIZER_PROPERTIES RegularizerTests Report check_operator
        check_regularizer examine_operator examine_regularizer
    """,
}


@pytest.mark.parametrize("module", NAMES)
def test_names_stay_importable(module: str) -> None:
    found = importlib.import_module(module)
    assert [name for name in NAMES[module].split() if not hasattr(found, name)] == []
