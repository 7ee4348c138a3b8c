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

__all__ = [
    "Blur",
    "FourierSampling",
    "Identity",
    "Inpainting",
    "assemble",
    "from_astra",
    "from_callables",
    "from_deepinv",
    "from_odl",
    "from_pylops",
    "from_scipy",
    "to_odl",
    "to_scipy",
]
