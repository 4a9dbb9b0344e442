"""Whether the files of a dataset are, byte by byte, what its metadata says."""
