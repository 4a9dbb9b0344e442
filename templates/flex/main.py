"""What the Flex Template's launcher runs: the job's command line, with the template's parameters."""

from beam_pipeline.__main__ import main

if __name__ == "__main__":
    main()
