"""Forward operators of other libraries as LinearOperators, and back."""

from learnreg.operators.adapters.astra import from_astra
from learnreg.operators.adapters.callables import from_callables
from learnreg.operators.adapters.deepinv import from_deepinv, to_deepinv
from learnreg.operators.adapters.mrinufft import from_mrinufft
from learnreg.operators.adapters.mrpro import from_mrpro
from learnreg.operators.adapters.odl import from_odl, to_odl
from learnreg.operators.adapters.pylops import from_pylops, to_pylops
from learnreg.operators.adapters.scipy import from_scipy, to_scipy
from learnreg.operators.adapters.sigpy import from_sigpy
from learnreg.operators.adapters.sparse import assemble

__all__ = [
    "assemble",
    "from_astra",
    "from_callables",
    "from_deepinv",
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
