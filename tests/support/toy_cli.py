"""`python toy_cli.py SITE.json WORDS...`: the command line, for which the published model is a toy on a local server.

The word `then` between two commands runs them one after the other, up to the first that fails: a start takes seconds.
SITE.json, or the word none: {"model": sizes, "files": rows}; see toy_published. Where
$DIE is set, who would write a third film is killed; $FILMS_LOG is where each film is noted by whom it was drawn.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from cogvideo import config
from cogvideo.weights import catalog


def set_up(site: dict[str, Any]) -> None:
    rows = [row | {name: tuple(row[name]) for name in ("hub", "urls")} for row in site["files"]]
    catalog.COGVIDEO = tuple(catalog.PublishedFile(**row) for row in rows)  # type: ignore[misc]
    preset = config.PRESETS["cogvideo"]
    config.PRESETS["cogvideo"] = config.replace(preset, model=config.resize_model(preset.model, site["model"]))


def watch_films() -> None:
    from cogvideo.media import video

    write, rank, log = video.write_video, os.environ["RANK"], Path(os.environ["FILMS_LOG"])

    def noted(path: Path, *arguments: Any) -> Path:
        if "DIE" in os.environ and len(log.read_text().splitlines()) >= 2:
            os.kill(os.getpid(), signal.SIGKILL)
        write(path, *arguments)
        with log.open("a") as lines:
            lines.write(f"{rank} {path.name}\n")
        return path

    video.write_video = noted


if __name__ == "__main__":
    if sys.argv[1] != "none":
        set_up(json.loads(Path(sys.argv[1]).read_text()))
    if "FILMS_LOG" in os.environ:
        watch_films()
    from cogvideo.cli.main import main

    for command in " ".join(sys.argv[2:]).split(" then "):
        if status := main(command.split()):
            sys.exit(status)
