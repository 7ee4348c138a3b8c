"""Forward operators of imaging; shapes exclude the batch axis."""

from learnreg.operators.adapters import (
    assemble,
    from_astra,
    from_callables,
    from_deepinv,
    from_odl,
    from_pylops,
    from_scipy,
    to_odl,
    to_scipy,
)
from learnreg.operators.blur import Blur
from learnreg.operators.fourier import FourierSampling
from learnreg.operators.identity import Identity, Inpainting
from learnreg.operators.tomography.astra_cuda import ConeBeam3D
from learnreg.operators.tomography.filtered_back_projection import filtered_back_projection
from learnreg.operators.tomography.geometry import FanGeometry, ParallelGeometry
from learnreg.operators.tomography.geometry_file import from_geometry
from learnreg.operators.tomography.projectors import FanBeam2D, ParallelBeam2D

__all__ = [
    "Blur",
    "ConeBeam3D",
    "FanBeam2D",
    "FanGeometry",
    "FourierSampling",
    "Identity",
    "Inpainting",
    "ParallelBeam2D",
    "ParallelGeometry",
    "assemble",
    "filtered_back_projection",
    "from_astra",
    "from_callables",
    "from_deepinv",
    "from_geometry",
    "from_odl",
    "from_pylops",
    "from_scipy",
    "to_odl",
    "to_scipy",
]
