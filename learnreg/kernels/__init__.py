"""Compiled kernels, an optional accelerator: numba compiles them at their first use and keeps the result on disk.

Everything here has a reference in plain torch elsewhere, which runs wherever a kernel does not fit. Modules other than
``loader`` import numba and are imported by it alone. A module holds all the functions that its kernels call: numba
recompiles when the file of a kernel changes, and only then.
"""
