"""The Space of `scripts/build_space.py`, started as a hub does: empty home, read-only checkout, port, root path."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.request import Request, urlopen

import pytest
import yaml

from cogvideo.cli import serve
from cogvideo.web import spaces
from tests.support.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
KEYS = {
    *("title", "emoji", "colorFrom", "colorTo", "sdk", "sdk_version", "python_version", "app_file", "license"),
    *("suggested_hardware", "tags", "short_description"),
}


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the Space, built by the script as the documents call it."""
    folder = tmp_path_factory.mktemp("built") / "space"
    words = [sys.executable, str(ROOT / "scripts" / "build_space.py"), "--output", str(folder)]
    answer = subprocess.run(words, cwd=folder.parent, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    assert str(folder) in answer.stdout
    return folder


def test_metadata_of_the_space_is_complete(space: Path) -> None:
    values = yaml.safe_load((space / "README.md").read_text(encoding="utf-8").split("---\n")[1])
    assert set(values) == KEYS
    assert values["suggested_hardware"] == "cpu-basic"
    assert values["license"] == "apache-2.0"
    assert (space / values["app_file"]).is_file()
    assert values["python_version"] == "3.11"
    assert "text-to-video" in values["tags"]
    assert len(values["short_description"]) <= 60
    assert f"gradio=={values['sdk_version']}\n" in (space / "requirements.txt").read_text()


def test_links_of_the_card_lead_to_files_of_the_space(space: Path) -> None:
    links = re.findall(r"\]\(([^)]+)\)", (space / "README.md").read_text(encoding="utf-8"))
    local = [link for link in links if "://" not in link]
    assert local and all((space / link).is_file() for link in local)


def test_a_copy_of_the_space_is_offered_on_a_space_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPACE_ID", raising=False)
    assert spaces.duplicate_link() == ""
    monkeypatch.setenv("SPACE_ID", "somebody/cogvideo")
    assert spaces.duplicate_link() == "https://huggingface.co/spaces/somebody/cogvideo?duplicate=true"


@pytest.mark.parametrize(
    ("environment", "port"),
    [({}, 7860), ({"PORT": "8080"}, 8080), ({"PORT": "8080", "GRADIO_SERVER_PORT": "9090"}, 9090)],
)
def test_the_port_comes_from_the_environment(
    environment: dict[str, str], port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PORT", "GRADIO_SERVER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert serve.parser().parse_args([]).port == port
    assert serve.parser().parse_args(["--port", "1234"]).port == 1234


def test_a_card_that_is_only_lent_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPACES_ZERO_GPU", raising=False)
    assert serve.parser().parse_args([]).device is None
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    assert serve.parser().parse_args([]).device == "cpu"


def test_where_cards_are_lent_one_function_asks_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    named: list[object] = []
    monkeypatch.setitem(sys.modules, "spaces", SimpleNamespace(GPU=named.append))
    monkeypatch.delenv("SPACES_ZERO_GPU", raising=False)
    spaces.register_zero_gpu()
    assert named == []
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    spaces.register_zero_gpu()
    assert [callable(function) for function in named] == [True]


def test_without_the_package_of_the_hub_it_starts_all_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "spaces", None)
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    spaces.register_zero_gpu()
    assert "without the package `spaces`" in caplog.text


READ_ONLY = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
MOUNT = 'mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" && cd "$1" && shift && exec "$@"'


def can_mount(folder: Path) -> bool:
    """Whether this machine lets us have a folder that not even root can write."""
    if shutil.which("unshare") is None:
        return False
    words = [*READ_ONLY, MOUNT, "sh", str(folder), "sh", "-c", "! touch x 2>/dev/null"]
    return subprocess.run(words, capture_output=True, check=False).returncode == 0


def started(folder: Path, home: Path, command: list[str], **settings: str) -> subprocess.Popen[str]:
    """`python app.py` in `folder`, in an environment that holds nothing but what a hub sets and `settings`."""
    kept = {"PATH", "LANG", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "COVERAGE_PROCESS_START"}
    environment = {name: value for name, value in os.environ.items() if name in kept}
    environment |= {"HOME": str(home), "SPACE_ID": "somebody/cogvideo", **settings}
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def ask(address: str, *data: object) -> dict[str, Any]:
    """The answer of an endpoint of the page."""
    request = Request(address, json.dumps({"data": data}).encode(), {"Content-Type": "application/json"})
    with urlopen(request, timeout=60) as answer:
        (value,) = json.load(answer)["data"]
    assert isinstance(value, dict)
    return value


def wait_until_open(server: subprocess.Popen[str], port: int) -> None:
    """Read what the server prints until it names its address; fail with all of it if it ends before."""
    assert server.stdout is not None
    said = []
    for line in server.stdout:
        said.append(line)
        if "Open:" in line:
            assert str(port) in line
            return
    pytest.fail("".join(said))


def test_built_space_serves_the_page_and_generates_a_video(space: Path, tmp_path: Path) -> None:
    checkout, home, port = tmp_path / "checkout", tmp_path / "home", free_port()
    shutil.copytree(space, checkout)
    home.mkdir()
    command = [sys.executable, "app.py"]
    with started(checkout, home, command, GRADIO_SERVER_PORT=str(port), SPACES_ZERO_GPU="true") as server:
        try:
            wait_until_open(server, port)
            url = f"http://127.0.0.1:{port}"
            with urlopen(url, timeout=60) as answer:
                assert "gradio" in answer.read().decode()
            with urlopen(f"{url}/gallery/panda.mp4", timeout=60) as answer:
                assert answer.read() == (ROOT / "examples" / "gallery" / "panda.mp4").read_bytes()
            job = ask(f"{url}/gradio_api/run/make_video", "一只熊猫在草地上向右跑", 1, 5)
            with urlopen(f"{url}/watch/{job['id']}", timeout=300) as events:
                for _ in events:  # a line for every change, and one every two seconds
                    if ask(f"{url}/gradio_api/run/video", job["id"])["status"] not in ("queued", "running"):
                        break
            video = ask(f"{url}/gradio_api/run/video", job["id"])
            assert video["status"] == "done", video
            with urlopen(f"{url}/{video['file']}", timeout=60) as answer:
                assert answer.read()[4:8] == b"ftyp"
        finally:
            server.terminate()
            server.communicate(timeout=60)


def test_it_starts_with_nothing_configured_where_nothing_can_be_written(space: Path, tmp_path: Path) -> None:
    checkout, home, port = tmp_path / "checkout", tmp_path / "home", free_port()
    home.mkdir()
    checkout.mkdir()
    if not can_mount(checkout):
        pytest.skip("no folder can be made read-only here")
    shutil.copytree(space, checkout, dirs_exist_ok=True)
    command = [*READ_ONLY, MOUNT, "sh", str(checkout), sys.executable, "app.py"]
    with started(checkout, home, command, PORT=str(port), GRADIO_ROOT_PATH="/video") as server:
        try:
            wait_until_open(server, port)
            with urlopen(f"http://127.0.0.1:{port}/alive", timeout=60) as answer:
                assert json.load(answer)["alive"] is True
            with urlopen(f"http://127.0.0.1:{port}/", timeout=60) as answer:
                page = answer.read().decode()
        finally:
            server.terminate()
            server.communicate(timeout=60)
    config = json.loads(re.search(r"window\.gradio_config = (\{.*?\});</script>", page, flags=re.S)[1])  # type: ignore[index]
    assert "/video" in config["root"]
    assert "somebody/cogvideo?duplicate=true" in json.dumps(config["components"])
    assert (home / ".local" / "share" / "cogvideo").is_dir()
    assert not (checkout / "data").exists()
