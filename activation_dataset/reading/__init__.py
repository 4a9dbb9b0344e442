"""Readers of a dataset: by index, in order, shuffled, and by origin."""
