"""The layers of the model as pure math, independent of the platform.

Shape letters: R rows, L slots per row, S samples per row, H hidden size, K key-value heads, G query
heads per key-value head, D head dimensions, I intermediate size. Inside `jax.shard_map`, each
device has a part of the arrays, so code takes shapes from the arrays instead of the configuration.
A bfloat16 model rounds the operands of matrix products and the residual stream; everything else is
float32.
"""
