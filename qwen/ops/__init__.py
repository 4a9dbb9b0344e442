"""Kernels of this project's own for CPUs, in C++, called through JAX's foreign function interface.

They are built where a C++ compiler is at hand when the project is installed, and serve where the
processor has what they use; elsewhere the forms that XLA compiles do.
(https://docs.jax.dev/en/latest/ffi.html)
"""
