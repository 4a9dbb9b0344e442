"""Entry point of the Flex Template: run the job with the template's parameters as flags."""

import sys

from beam_pipeline.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
