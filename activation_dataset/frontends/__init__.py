"""The reader as each framework's own kind of data; each module imports its framework when used."""
