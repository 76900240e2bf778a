"""Films from a table: python examples/batch.py examples/batch.csv films

Each row has a column `prompt` and may have `file`, `seed`, `frames` and `seconds`. The model is loaded once. A row that
cannot be drawn is told of and left out; a film that is there already is not drawn again.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project needs no installation, only its folder

from cogvideo import CogVideoPipeline, RequestError, VideoRequest, write_video


def requests(table: Path) -> list[tuple[str, VideoRequest]]:
    """(file name, what to draw) of every row. Raises RequestError for a seed, length or number of frames too odd."""
    with table.open(encoding="utf-8-sig", newline="") as file:
        return [
            (
                row.get("file") or f"{number:03}.mp4",
                VideoRequest(
                    row["prompt"],
                    seed=int(row.get("seed") or number),
                    num_frames=int(row.get("frames") or 33),
                    duration=float(row.get("seconds") or 4),
                    superres=False,
                ),
            )
            for number, row in enumerate(csv.DictReader(file))
        ]


def main(table: Path, folder: Path, model: str = "mini") -> int:
    """Draws every row of `table` into `folder`; 2 where a sentence was refused."""
    folder.mkdir(parents=True, exist_ok=True)
    pipeline = CogVideoPipeline.from_pretrained(model)
    refused = 0
    for name, request in requests(table):
        path = folder / Path(name).name
        if path.exists():
            continue
        try:
            frames = pipeline(request)
        except RequestError as error:
            refused += 1
            print(f"{name}: {error.zh}\n{name}: {error.en}", file=sys.stderr)
            continue
        print(write_video(path, frames, request.duration), request.prompt)
    return 2 if refused else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:4]))
