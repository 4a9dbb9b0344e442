"""Per-layer activation datasets on disk: the format, and those who write, read and verify it.

Needs numpy and google-crc32c only.
"""
