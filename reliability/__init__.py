"""Attempts to break the job and its datasets: scripts with a seed, run by hand.

`make reliability` runs them one after the other; docs/reliability.md says what each found. Small
versions of them are in tests/reliability/.
"""
