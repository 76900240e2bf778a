"""`python -m cogvideo COMMAND ...`: the command line."""

import sys

from cogvideo.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
