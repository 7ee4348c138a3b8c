"""Compiled kernels, an optional accelerator: compilers make them at their first use and keep the result on disk. Those
of CPUs are numba's and stand here, those of GPUs are Triton's, under the same names in ``cuda``.

Everything here has a reference in plain torch elsewhere, which runs wherever a kernel does not fit. Modules other than
``loader`` import their compiler and are imported by it alone. A module of numba's holds all the functions that its
kernels call: numba recompiles when the file of a kernel changes, and only then.
"""
