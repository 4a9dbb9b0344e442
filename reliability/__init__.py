"""Seeded scripts that try to break the job and its datasets, run by hand.

`make reliability` runs all scripts; docs/reliability.md lists what each one found. Small versions
of the scripts are in tests/reliability/.
"""
