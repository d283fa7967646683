"""Kernels of the extension modules, one op a file, each for CPU and CUDA tensors alike."""
