"""The page: type a Chinese sentence, watch five keyframes appear and then the frames between them, share a link.

`python app.py` serves it; a Hugging Face Space does just that. All model work happens in the worker of
`cogvideo.jobs.service`; the page (`cogvideo.web.components`, `cogvideo.web.handlers`) submits jobs and shows their newest view.
"""

from __future__ import annotations

import signal
import webbrowser
from collections.abc import Sequence

from cogvideo.jobs.queue import Limits
from cogvideo.jobs.service import open_jobs
from cogvideo.web.server import serve
from cogvideo.web.spaces import claim_card, data_folder, free_port, parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Serves the page until it is interrupted. Raises CogVideoError."""
    options = parser().parse_args(arguments)
    claim_card()
    port = free_port(options.host, options.port, options.any_port)
    limits = Limits(
        abandoned_seconds=options.drop_abandoned or None,
        idle_seconds=60 * options.unload_after or None,
        keep_bytes=int(options.keep_gb * 2**30),
    )
    place = (options.device, options.eight_bit, options.offload, options.memory)
    jobs = open_jobs(data_folder(options.data), options.model, limits, *place)
    try:
        ui = serve(jobs, options.host, port, options.root_path)
        jobs.start(
            preload=jobs.preset.name == "mini" if options.preload is None else options.preload
        )  # after the page: reading the model must not keep it waiting
        url = f"http://{'127.0.0.1' if options.host == '0.0.0.0' else options.host}:{port}"
        print(f"打开 / Open: {url}\n停止 / Stop: Ctrl+C", flush=True)
        if options.browser:
            webbrowser.open(url)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            ui.block_thread()
        finally:
            ui.close()
    finally:
        jobs.close()
    return 0
