"""Entry point of `python -m beam_pipeline`."""

import sys

from activation_dataset.closed_pipe import until_closed
from beam_pipeline.command import main

if __name__ == "__main__":
    sys.exit(until_closed(lambda: main(sys.argv[1:])))
