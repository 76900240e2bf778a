"""`python -m cogvideo COMMAND ...`, or `cogvideo COMMAND ...` where it is installed: the command line.

In: the words after it. Out: an exit status, which `console` names. Each command is imported when it is called: a module
with `main(words) -> int | None`; the shell's completion is made from the commands' parsers.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from cogvideo.cli.main import main

if TYPE_CHECKING:
    pass

if __name__ == "__main__":
    sys.exit(main())
