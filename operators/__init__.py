"""Forward operators of imaging, and the table of those that model files hold; shapes exclude the batch axis."""

from typing import Any, Protocol

from learnreg.linear.complex_channels import as_channels, as_complex
from learnreg.linear.operator import Composition, LinearOperator, Scaled, Sum
from learnreg.linear.stack import VStack
from learnreg.operators.adapters import (
    assemble,
    from_astra,
    from_callables,
    from_deepinv,
    from_mrinufft,
    from_mrpro,
    from_odl,
    from_pylops,
    from_scipy,
    from_sigpy,
    to_deepinv,
    to_odl,
    to_pylops,
    to_scipy,
)
from learnreg.operators.adapters.sparse import SparseOperator
from learnreg.operators.blur import Blur
from learnreg.operators.fourier import FourierSampling
from learnreg.operators.identity import Identity, Inpainting
from learnreg.operators.mri import CartesianMRI
from learnreg.operators.tomography.cone_beam import ConeBeam3D
from learnreg.operators.tomography.filtered_back_projection import filtered_back_projection
from learnreg.operators.tomography.geometry import FanGeometry, ParallelGeometry
from learnreg.operators.tomography.geometry_file import from_geometry
from learnreg.operators.tomography.projectors import FanBeam2D, ParallelBeam2D

__all__ = [
    "OPERATORS",
    "Blur",
    "CartesianMRI",
    "ConeBeam3D",
    "FanBeam2D",
    "FanGeometry",
    "FourierSampling",
    "Identity",
    "Inpainting",
    "ParallelBeam2D",
    "ParallelGeometry",
    "StoredOperator",
    "as_channels",
    "as_complex",
    "assemble",
    "filtered_back_projection",
    "from_astra",
    "from_callables",
    "from_deepinv",
    "from_geometry",
    "from_mrinufft",
    "from_mrpro",
    "from_odl",
    "from_pylops",
    "from_scipy",
    "from_sigpy",
    "to_deepinv",
    "to_odl",
    "to_pylops",
    "to_scipy",
]


class StoredOperator(Protocol):
    """What an operator needs to be held by model files.

    Raises
    ------
    ConfigError: by ``from_stored``, a description that no operator of its kind has.
    """

    def stored(self) -> dict[str, Any]:
        """What rebuilds the operator, the key "config" at least; "name" is the file's. Values are what JSON knows,
        tensors, and other operators of the table."""

    @classmethod
    def from_stored(cls, stored: dict[str, Any], image_shape: tuple[int, ...] | None) -> LinearOperator:
        """The operator again; ``image_shape`` for those that take images of any size."""


OPERATORS: dict[str, type[StoredOperator]] = {
    "identity": Identity,
    "parallel-beam": ParallelBeam2D,
    "fan-beam": FanBeam2D,
    "cone-beam": ConeBeam3D,
    "inpainting": Inpainting,
    "blur": Blur,
    "fourier-sampling": FourierSampling,
    "cartesian-mri": CartesianMRI,
    "sparse": SparseOperator,
    "scaled": Scaled,
    "composition": Composition,
    "sum": Sum,
    "stack": VStack,
}
"""By the name in model files."""
