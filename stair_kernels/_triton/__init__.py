"""Triton kernels of the matmul-shaped operators; imported only where there is a GPU."""
