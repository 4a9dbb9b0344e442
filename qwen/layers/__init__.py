"""The layers of the model as pure math, independent of the platform.

Shapes use: R rows, L slots of a row, S samples that a row may hold, H hidden, K key-value heads, G
query heads of each, D head dimensions, I intermediate. Inside `jax.shard_map`, arrays are one
device's part, so shapes come from the arrays and not from the configuration. In bfloat16, the
operands of matrix products and the residual stream are rounded; everything between is float32.
"""
