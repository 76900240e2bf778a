"""The page: type a Chinese sentence, watch five keyframes appear and then the frames between them, share a link.

`python app.py` serves it; a Hugging Face Space does just that. All model work happens in the worker of
`cogvideo.jobs.service`; the page (`cogvideo.web.components`, `cogvideo.web.handlers`) submits jobs and shows their
newest view.
"""

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
