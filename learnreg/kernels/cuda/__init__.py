"""Kernels of GPUs by Triton, called as those of CPUs, with tensors for arrays. Sums have no atomic operations: their
order is fixed. With ``TRITON_INTERPRET=1`` they run on CPUs, slowly, for tests."""
