"""Start of a Hugging Face Space and of `python app.py`: the command `cogvideo.cli.serve`."""

from __future__ import annotations

import sys

from cogvideo.cli.console import REQUEST_ERROR
from cogvideo.cli.serve import main
from cogvideo.errors import CogVideoError

if __name__ == "__main__":
    try:
        sys.exit(main())
    except CogVideoError as error:
        print(f"{error.zh}\n{error.en}", file=sys.stderr)
        sys.exit(REQUEST_ERROR)
