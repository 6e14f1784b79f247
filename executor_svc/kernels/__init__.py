"""Triton kernels of the CUDA path; each has its plain PyTorch reference in executor_svc/layers or beside its test."""
