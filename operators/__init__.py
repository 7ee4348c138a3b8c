"""Forward operators of imaging; shapes exclude the batch axis."""

from learnreg.operators.blur import Blur
from learnreg.operators.identity import Identity, Inpainting

__all__ = ["Blur", "Identity", "Inpainting"]
