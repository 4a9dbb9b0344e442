"""What the Flex Template launches: the job's command line, with the template's parameters."""

import sys

from beam_pipeline.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
