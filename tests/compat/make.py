"""Writes the data of this folder with the build of 0a8de33: `python make.py CHECKOUT OUT`.

CHECKOUT: a working copy of that commit, which is run. OUT: an empty folder. Needs the fonts and the C compiler that
the tests need. Nothing that is written has a path of the machine that it was made on.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from make_commands import command_line, interfaces
from making import BATCH, BOAT, CAR, PANDA, command, inside, write_json

KEY = "k" * 20
"""Of who asked for the jobs."""


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    checkout = options.checkout.resolve()
    sys.path[:0] = [str(checkout), str(checkout / "tests")]
    options.out.mkdir(parents=True, exist_ok=True)
    os.chdir(options.out)
    for part in (training, batch, server, film, command_line, interfaces):
        part(checkout)


# --- training ---------------------------------------------------------------------------------------------------------

RECIPE = """\
preset = "mini"
seed = 0
data = "prepared"
start = "start"
clusters = 16

[tokenizer]
pieces = 90

[codec.run]
steps = 2
learning_rate = 1e-3

[codec.data]
small_frames = 4
fine_crops = 2
warmup_steps = 1
restart_every = 1
"""
PART = """
[{part}.run]
steps = 2
learning_rate = 1e-2
muon_learning_rate = 1e-2
warmup = 1
weight_decay = 0.01
betas = [0.9, 0.95]
clip = 1.0
average = 0.9
accumulate = 1
save_minutes = 0.0
log_every = 1
picture_every = 0

[{part}.data]
batch = 4
"""
NETWORKS = ("backbone", "stage1", "stage2", "superres")


def training(_: Path) -> None:
    """`training/`: start, prepared, recipe.toml, run (with its model) and what two more steps make of stage 1."""
    import toy_model
    from toy_clips import moving, write_pictures

    from cogvideo.config import describe_preset

    with inside("training"):
        Path("start").mkdir()
        toy_model.write_toy(Path("start"))
        Path("start/preset.json").write_text(describe_preset("mini", toy_model.CONFIG), encoding="utf-8")
        Path("clips").mkdir()
        write_pictures(Path("clips", "向右"), moving("向右"))
        Path("clips", "向右.txt").write_text("一只小猫在草地上向右跑\n", encoding="utf-8")
        command("prepare", "clips", "prepared", "--model", "start", "--pixels", "--workers", "1", "--device", "cpu")
        shutil.rmtree("clips")
        recipe = RECIPE + "".join(PART.format(part=part) for part in NETWORKS)
        Path("recipe.toml").write_text(recipe, encoding="utf-8")
        command("train", "recipe.toml", "--out", "run", "--threads", "1")
        _resume()
        for part in ("codec", "stage2", "superres"):  # stage 1 is resumed, on the backbone
            shutil.rmtree(Path("run", part))
        for part in ("backbone", "stage1"):
            shutil.rmtree(Path("run", part, "tensorboard"))  # has the machine's name
        for large in ("text.model", "codec.safetensors"):  # the run's model has its own
            Path("start", large).unlink()


def _resume() -> None:
    """What this build makes of the checkpoint of stage 1 in two more steps, in fp16: `resumed.safetensors`."""
    shutil.copytree("run", "again")
    Path("longer.toml").write_text(Path("recipe.toml").read_text(encoding="utf-8").replace("steps = 2", "steps = 4"))
    command("train", "longer.toml", "--out", "again", "--threads", "1", "--part", "stage1")
    command("train", "longer.toml", "--out", "again", "--threads", "1", "--part", "export")
    shutil.copy("again/model/stage1.safetensors", "resumed.safetensors")
    shutil.rmtree("again")
    Path("longer.toml").unlink()


# --- a folder of films that was interrupted ---------------------------------------------------------------------------

HALVES = {
    "both": ("--output-path", "both", "--frames", "9", "--seconds", "2", "--batch-size", "2", "--guidance", "2.5"),
    "keyframes": ("--output-path", "keyframes", "--stage-1", "--use-guidance-stage1", "--guidance-alpha", "2"),
}
"""Folder -> the words of the command that fills it."""


def batch(_: Path) -> None:
    """`batch/`: a folder of films, and one of keyframes, both interrupted after two of them."""
    from cogvideo import batch as drawing

    draw = drawing.draw

    def two(*given: Any, **options: Any) -> Iterator[Any]:
        for event in draw(*given, **options):
            if isinstance(event, drawing.Drawn):
                if len(drawn) == 2:
                    raise KeyboardInterrupt
                drawn.append(event)
            yield event

    drawing.draw = two
    with inside("batch"):
        Path("prompts.txt").write_text(f"# three\n{PANDA}\n{CAR}\n\n{BOAT}\n", encoding="utf-8")
        for words in HALVES.values():
            drawn: list[Any] = []
            command(*BATCH, *words, wanted=130)
        write_json("commands.json", {folder: [*BATCH, *words] for folder, words in HALVES.items()})
    drawing.draw = draw


# --- a server's data folder -------------------------------------------------------------------------------------------


def server(_: Path) -> None:
    """`server/`: jobs of all kinds, drawn by mini; `jobs.json`: what each of them is; `links.json`: where they lead."""
    from cogvideo.config import PRESETS
    from cogvideo.errors import OutOfMemory
    from cogvideo.events import KeyframeDone
    from cogvideo.jobs import Jobs, Limits
    from cogvideo.pipeline import CogVideoPipeline

    class Small(CogVideoPipeline):
        """Has too little memory for films of 2 seconds; those of half a second stand still at their second keyframe."""

        def stream(self, request: Any, stop: Any = None) -> Any:
            if request.seconds == 2.0:
                raise OutOfMemory("内存不足：请改用 cpu 预设。", "Out of memory: use the preset cpu.", "cpu")
            for event in super().stream(request, stop):
                while request.seconds == 0.5 and isinstance(event, KeyframeDone) and event.index and not stop():
                    time.sleep(0.01)
                yield event

    pipeline = Small.from_pretrained("mini", device="cpu")
    jobs = Jobs(Path("server"), PRESETS["mini"], lambda: pipeline, limits=Limits(preview_seconds=60))
    jobs.start()
    kinds = Kinds(jobs)
    kinds.make()
    jobs.close()
    described = Jobs(Path("server"), PRESETS["mini"], lambda: pipeline)
    write_json("jobs.json", {"key": KEY, "jobs": {name: kinds.described(described, name) for name in kinds.ids}})
    write_json("links.json", [kinds.link(described, name) for name in ("plain", "other in-betweens", "enlarged")])
    described.close()
    Path("server/lock").unlink()
    for name in set(kinds.ids) - {"plain", "enlarged"}:  # pictures of the others would take most of the room
        Path("server/results", kinds.ids[name], "frames.npz").unlink(missing_ok=True)


class Kinds:
    """Jobs by what they are examples of."""

    def __init__(self, jobs: Any) -> None:
        from cogvideo.page_api import endpoints

        self.jobs = jobs
        self.ids: dict[str, str] = {}
        self.api = {endpoint.__name__: endpoint for endpoint in endpoints(jobs)}

    def make(self) -> None:
        from cogvideo.page import Form

        from cogvideo.config import VideoRequest

        usual = Form.usual(self.jobs.preset)
        form = replace(usual, prompt=PANDA, seed=7, frames=9, guidance=2.0, temperature=1.5, top_k=6)
        self.ask("plain", form.request(self.jobs.preset.sampling))
        five = VideoRequest(BOAT.replace("小猫", "帆船").replace("夜空", "大海"), 8, 5, 1.0, False)
        self.ask("five frames, settings kept out of the file", five, comment=False)
        self.follow("finer", "five frames, settings kept out of the file", "finer")
        self.follow("other in-betweens", "plain", "between")
        self.follow("enlarged", "five frames, settings kept out of the file", "enlarge")
        self.ask("drafts", VideoRequest("一只兔子在雪地里跳", 2**32 - 1, 9, 4.0, False, drafts=2))
        self.follow("finished draft", "drafts", "finish", "2")
        after = self.api["continue_video"](self.ids["plain"], "它跳起来", 3, KEY)
        self.end("continued from the last frame", after["id"])
        self.ask("first frame of a visitor", VideoRequest(PANDA, 9, 5, 4.0, False, first_frame=self.picture()))
        self.stop("stopped after a round", VideoRequest(PANDA, 10, 17, 4.0, False), True, lambda view: view.keyframes)
        self.follow("resumed", "stopped after a round", "resume")
        self.ask("failed", replace(five, seconds=2.0))
        self.stop("stopped", replace(five, seconds=0.5), False, lambda view: view.keyframes)
        running = self.jobs.submit(replace(five, seconds=0.5, seed=11), KEY).id
        self.wait(running, lambda view: view.keyframes)
        waiting = self.jobs.submit(replace(five, seed=12), KEY).id
        self.ids |= {"interrupted": running, "waiting": waiting}

    def picture(self) -> Any:
        import numpy as np

        height, width = self.jobs.preset.frame_size
        picture = np.full((height, width, 3), (150, 200, 240), np.uint8)
        picture[height // 2 :] = (110, 180, 80)
        return self.jobs.encode(picture)

    def ask(self, name: str, request: Any, **options: Any) -> None:
        self.end(name, self.jobs.submit(request, KEY, **options).id)

    def follow(self, name: str, job: str, change: str, drafts: str = "") -> None:
        self.end(name, self.api["change_video"](self.ids[job], change, KEY, drafts)["ids"][0])

    def stop(self, name: str, request: Any, after_level: bool, when: Callable[[Any], Any]) -> None:
        job = self.jobs.submit(request, KEY).id
        self.wait(job, when)
        self.jobs.stop(job, KEY, after_level)
        self.end(name, job)

    def end(self, name: str, job: str) -> None:
        self.ids[name] = job
        self.wait(job, lambda view: not view.active)

    def wait(self, job: str, when: Callable[[Any], Any]) -> None:
        while not when(self.jobs.view(job)):
            time.sleep(0.01)

    def described(self, jobs: Any, name: str) -> dict[str, Any]:
        """What must be found again. `request` has the names of 0a8de33."""
        from cogvideo.view import request_to_dict

        view = jobs.view(self.ids[name])
        tokens = jobs.tokens(view.id)
        files = sorted(path.name for path in (jobs.results / view.id).glob("*") if path.suffix != ".npz")
        return {
            "id": view.id,
            "status": view.status,
            "level": view.level,
            "frames": view.frames,
            "video": view.video,
            "keyframes": len(view.keyframes),
            "error": view.error,
            "smaller": view.smaller,
            "comment": view.comment,
            "model": view.model,
            "tokens": tokens.frames if tokens else None,
            "files": files,
            "request": request_to_dict(view.request),
        }

    def link(self, jobs: Any, name: str) -> dict[str, Any]:
        """A link as `cv.link` in assets/page/page.js makes it, and what it must fill in."""
        from cogvideo import page

        view = jobs.view(self.ids[name])
        value = page.screen_value(view, jobs.preset_of(view), "cogvideo")  # on a server where mini has to be named
        query = {"job": view.id, "p": value["prompt"], "s": value["seed"], "f": value["frames"]}
        query |= {"d": f"{value['seconds']:g}", **value["extra"]}
        form = page.Form.of(view.request, jobs.preset_of(view).sampling)
        return {"link": f"http://127.0.0.1:7860/?{urlencode(query)}", "form": asdict(replace(form, start=None))}


# --- a film -------------------------------------------------------------------------------------


def film(_: Path) -> None:
    """`film/`: an mp4 and a gif with everything in their comments that a command can put there."""
    words = ["--seed", "7", "--frames", "5", "--seconds", "2", "--no-superres", "--guidance", "2.5", "--top-k", "9"]
    with inside("film"):
        argv = ["generate", PANDA, "--model", "mini", *words, "--gif", "--quiet", "--out", "panda.mp4"]
        command(*argv)
        write_json("command.json", argv)


if __name__ == "__main__":
    main()
