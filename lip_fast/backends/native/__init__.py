"""Kernels of the extension modules: one op a file, named after the op, each for CPU and CUDA tensors alike."""
