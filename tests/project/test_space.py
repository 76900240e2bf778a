"""The page as a Hugging Face Space starts it: an empty home, a checkout that cannot be written, a port, a root path."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from urllib.request import urlopen

import pytest
import yaml

from cogvideo.cli import serve
from cogvideo.web import spaces

ROOT = Path(__file__).resolve().parents[2]
HARDWARE = {"cpu-basic", "cpu-upgrade", "t4-small", "t4-medium", "l4x1", "a10g-small", "a10g-large", "a100-large"}
KEYS = {
    *("title", "emoji", "colorFrom", "colorTo", "sdk", "sdk_version", "python_version", "app_file", "license"),
    *("suggested_hardware", "tags", "short_description"),
}


def front_matter() -> dict[str, object]:
    head = (ROOT / "README.md").read_text(encoding="utf-8").split("---\n")[1]
    values = yaml.safe_load(head)
    assert isinstance(values, dict)
    return values


def test_the_head_of_the_readme_says_what_a_space_needs() -> None:
    values = front_matter()
    assert set(values) == KEYS
    assert values["suggested_hardware"] in HARDWARE
    assert values["app_file"] == "app.py"
    assert values["python_version"] == "3.11"
    assert "text-to-video" in values["tags"]  # type: ignore[operator]


def test_the_version_of_gradio_is_the_pinned_one() -> None:
    assert f"gradio=={front_matter()['sdk_version']}\n" in (ROOT / "requirements.txt").read_text()


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


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_it_starts_with_nothing_configured_where_nothing_can_be_written(tmp_path: Path) -> None:
    checkout, home = tmp_path / "checkout", tmp_path / "home"
    home.mkdir()
    checkout.mkdir()
    if not can_mount(checkout):
        pytest.skip("no folder can be made read-only here")
    for name in ("cogvideo", "kernels", "assets", "examples"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "app.py", checkout)
    port = free_port()
    kept = {"PATH", "LANG", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "COVERAGE_PROCESS_START"}
    environment = {name: value for name, value in os.environ.items() if name in kept}
    environment |= {"HOME": str(home), "PORT": str(port), "SPACE_ID": "somebody/cogvideo", "GRADIO_ROOT_PATH": "/video"}
    words = [*READ_ONLY, MOUNT, "sh", str(checkout), sys.executable, "app.py"]
    with subprocess.Popen(
        words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as server:
        try:
            assert server.stdout is not None
            said = next((line for line in server.stdout if "Open:" in line), "it ended")
            assert str(port) in said
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
