"""Triton kernels of the CUDA path. Nothing here is imported where there is neither a GPU nor Triton's interpreter."""
