"""The published model as a new user meets it, at toy size: an empty home, a bad connection, a film.

Commands run in processes of their own; the server is on this machine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from moviepy import VideoFileClip

from cogvideo.media.metadata import read_metadata
from cogvideo.runtime.memory_presets import MEMORY_PRESETS
from tests.support import toy_published
from tests.support.flaky_server import FlakyServer, cut_after, flaky_server

ROOT = Path(__file__).resolve().parents[2]
PROMPT = "一只熊猫在草地上向右跑"
WAYS = {name: ["--memory", name] for name in MEMORY_PRESETS} | {
    "int8": ["--quantization", "int8"],
    "offload": ["--offload"],
}
"""How a CPU can hold the model: every preset, and the two ways by hand."""


class User:
    """Somebody with an empty home folder, and a Hugging Face mirror that is the local server."""

    def __init__(self, home: Path, server: FlakyServer | None = None) -> None:
        self.home, self.site = home, "none"
        self.environment = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        self.environment |= {
            "HOME": str(home),
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
            "OMP_NUM_THREADS": "1",
        }
        if server:
            self.environment["HF_ENDPOINT"] = server.url

    def types(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return self.runs(str(ROOT / "tests" / "support" / "toy_cli.py"), self.site, *words, **environment)

    def runs(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *words],
            cwd=self.home,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlakyServer]:
    """Has stage 1 on Hugging Face and everything at the other addresses; every archive's connection breaks twice."""
    folder = tmp_path_factory.mktemp("archives")
    toy_published.write_archives(folder)
    with flaky_server() as running:
        running.files |= {f"/{path.name}": path.read_bytes() for path in folder.iterdir()}
        stage1 = "/THUDM/CogVideo/resolve/main/cogvideo-stage1.zip"
        running.files[stage1] = running.files["/cogvideo-stage1.zip"]
        for path in (stage1, "/cogvideo-stage2.zip", "/cogview2-dsr.zip", "/ice_image.pt"):
            third = len(running.files[path]) // 3
            running.faults[path] = [cut_after(third), cut_after(third)]
        site = {
            "model": toy_published.model(),
            "files": toy_published.rows(folder, running.url, ("cogvideo-stage1.zip",)),
        }
        (folder / "site.json").write_text(json.dumps(site))
        running.site = folder / "site.json"  # type: ignore[attr-defined]
        yield running


@pytest.fixture(scope="module")
def user(server: FlakyServer, tmp_path_factory: pytest.TempPathFactory) -> User:
    """Has downloaded the model."""
    somebody = User(tmp_path_factory.mktemp("home"), server)
    somebody.site = str(server.site)  # type: ignore[attr-defined]
    answer = somebody.types("download", "cogvideo")
    assert answer.returncode == 0, answer.stderr
    assert answer.stderr.count("The CogVideo License") == 2
    return somebody


def test_what_was_downloaded_is_where_the_release_has_it(user: User, server: FlakyServer) -> None:
    home = user.home / ".sat_models"
    for name, iteration in toy_published.ITERATIONS.items():
        assert (home / name / "latest").read_text() == iteration
        assert (home / name / iteration / "mp_rank_00_model_states.pt").is_file()
    assert (home / "cluster_label2.npy").is_file()
    assert {path.name for path in (user.home / ".icetk_models").iterdir()} == {"ice_text.model", "ice_image.pt"}
    assert not any(path.suffix in (".zip", ".part", ".missing") for path in home.rglob("*"))
    assert not any(faults for faults in server.faults.values())  # all broken connections were met
    assert server.ranges("/cogvideo-stage1.zip") == []  # Hugging Face had it
    before = len(server.requests)
    assert user.types("download", "cogvideo").returncode == 0
    assert len(server.requests) == before


@pytest.fixture(scope="module")
def films(user: User) -> dict[str, Path]:
    """A film for every way of holding the model, drawn one after the other by one process."""
    words = ["generate", PROMPT, "--model", "cogvideo", "--device", "cpu", "--seed", "3", "--frames", "9", "--quiet"]
    commands = [[*words, *way, "--output", f"{name}.mp4"] for name, way in WAYS.items()]
    answer = user.types(*" then ".join(" ".join(command) for command in commands).split())
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.split() == [f"{name}.mp4" for name in WAYS]
    return {name: user.home / f"{name}.mp4" for name in WAYS}


@pytest.mark.parametrize("name", WAYS)
def test_every_preset_that_a_cpu_can_run_makes_a_film(films: dict[str, Path], name: str) -> None:
    assert_a_film(films[name])


def test_presets_that_keep_the_weights_as_they_are_make_the_same_film(films: dict[str, Path]) -> None:
    shown = {name: pictures_of(path) for name, path in films.items()}
    for name in ("a100", "48g", "offload"):
        assert np.array_equal(shown[name], shown["cpu"]), name
    assert not np.array_equal(shown["8g"], shown["cpu"])


def test_a_converted_copy_makes_the_same_film(user: User) -> None:
    words = ["generate", PROMPT, "--model", "cogvideo", "--device", "cpu", "--frames", "5", "--seed", "4", "--output"]
    assert user.types(*words, "published.mp4").returncode == 0
    assert user.types("convert").returncode == 0
    archives = list((user.home / ".sat_models").rglob("*.pt"))
    for path in archives:
        path.rename(path.with_suffix(".away"))
    answer = user.types(*words, "converted.mp4")
    for path in archives:
        path.with_suffix(".away").rename(path)
    assert answer.returncode == 0, answer.stderr
    assert_a_film(user.home / "converted.mp4")
    first, second = ((user.home / f"{name}.mp4").read_bytes() for name in ("published", "converted"))
    assert first == second


def test_first_use_fetches_only_where_agreed(server: FlakyServer, tmp_path: Path) -> None:
    newcomer = User(tmp_path, server)
    newcomer.site = str(server.site)  # type: ignore[attr-defined]
    before = len(server.requests)
    words = [
        "generate",
        PROMPT,
        "--model",
        "cogvideo",
        "--device",
        "cpu",
        "--frames",
        "5",
        "--no-superres",
        "--output",
        "a.mp4",
    ]
    answer = newcomer.types(*words)
    assert answer.returncode == 2
    assert "python -m cogvideo download cogvideo" in answer.stderr
    assert len(server.requests) == before
    answer = newcomer.types(*words, COGVIDEO_DOWNLOAD="1")
    assert answer.returncode == 0, answer.stderr
    assert_a_film(tmp_path / "a.mp4", side=32)


def pictures_of(path: Path) -> npt.NDArray[np.uint8]:
    with VideoFileClip(str(path)) as film:
        return np.stack(list(film.iter_frames()))


def assert_a_film(path: Path, side: int = 96) -> None:
    pictures = pictures_of(path)
    assert pictures.shape == (33, side, side, 3)
    assert pictures.std() > 1  # not one colour
    metadata = read_metadata(path)
    assert metadata is not None
    assert (metadata["model"], metadata["prompt"]) == ("cogvideo", PROMPT)


# --- many processes -------------------------------------------------------------------------------------------------


def test_two_processes_one_of_them_killed_and_the_command_given_again(tmp_path: Path) -> None:
    user, log = User(tmp_path), tmp_path / "films.log"
    subjects = ("熊猫", "兔子", "汽车", "火箭", "足球", "苹果")
    (tmp_path / "prompts.txt").write_text("\n".join(f"一只{subject}在草地上向右" for subject in subjects))
    words = [
        "generate",
        "--model",
        "mini",
        "--device",
        "cpu",
        "--input-source",
        "prompts.txt",
        "--output-path",
        "films",
    ]
    words += ["--frames", "5", "--quiet"]
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    launch += [str(ROOT / "tests" / "support" / "toy_cli.py"), "none"]
    log.touch()
    first = user.runs(*launch, *words, DIE="1", FILMS_LOG=str(log))
    assert first.returncode != 0
    begun = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "films").glob("[!.]*.mp4")}
    assert 2 <= len(begun) < 6
    log.write_text("")  # a process may have ended between a film and its line
    second = user.runs(*launch, *words, FILMS_LOG=str(log))
    assert second.returncode == 0, second.stderr
    names = [line.split()[1] for line in log.read_text().splitlines()]
    films = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "films").glob("[!.]*.mp4")}
    assert len(films) == 6  # none lost
    assert sorted(names) == sorted(films.keys() - begun.keys())  # none twice
    assert begun.items() <= films.items()  # what was there stays as it is
    index = (tmp_path / "films" / "index.tsv").read_text().splitlines()
    assert sorted(line.split("\t")[0] for line in index) == sorted(films)
    assert {line.split("\t")[2] for line in index} == {f"一只{subject}在草地上向右" for subject in subjects}
