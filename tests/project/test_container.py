"""The container's files pass real linters, and do what they promise as far as that shows without an engine."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
SCRIPTS = [*sorted(ROOT.glob("scripts/*.sh")), ROOT / "scripts" / "find-python", ROOT / ".ci" / "run"]


def run(*words: str | Path, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def tool(name: str) -> Path:
    """A program that came with a package, beside this Python."""
    return Path(sys.executable).with_name(name)


# --- linters --------------------------------------------------------------------------------------------------------


def test_the_dockerfile_passes_hadolint() -> None:
    answer = run(tool("hadolint"), "Dockerfile")
    assert answer.returncode == 0, answer.stdout


def test_hadolint_would_see_a_fault(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(DOCKERFILE.replace("USER 10001\n", "") + "USER root\n")
    assert "DL3002" in run(tool("hadolint"), tmp_path / "Dockerfile").stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_pass_shellcheck(script: Path) -> None:
    answer = run(tool("shellcheck"), script)
    assert answer.returncode == 0, answer.stdout


@pytest.mark.parametrize("profile", ["gpu", "cpu"])
def test_compose_accepts_the_file(profile: str) -> None:
    answer = run(tool("docker-compose"), "-f", "compose.yaml", "--profile", profile, "config", PORT="8123")
    assert answer.returncode == 0, answer.stderr
    services = yaml.safe_load(answer.stdout)["services"]
    assert set(services) == {profile}
    service = services[profile]
    assert service["build"]["args"] == {"DEVICE": profile}
    assert {volume["target"] for volume in service["volumes"]} == {"/home/cogvideo", "/data"}
    assert service["ports"][0]["published"] == "8123"
    assert service["ports"][0]["host_ip"] == "127.0.0.1"
    assert ("deploy" in service) == (profile == "gpu")


def test_compose_would_see_a_fault(tmp_path: Path) -> None:
    (tmp_path / "compose.yaml").write_text((ROOT / "compose.yaml").read_text().replace("cap_drop:", "cap_dorp:"))
    answer = run(tool("docker-compose"), "-f", tmp_path / "compose.yaml", "--profile", "cpu", "config")
    assert answer.stdout == ""
    assert "cap_dorp" in answer.stderr


# --- the image ------------------------------------------------------------------------------------------------------


def instructions(word: str) -> list[str]:
    joined = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.M))
    return [" ".join(line.split()[1:]) for line in joined.splitlines() if line.startswith(f"{word} ")]


def test_it_runs_as_nobody_in_particular() -> None:
    assert instructions("USER")[-1] == "10001"
    assert DOCKERFILE.rindex("\nUSER") > DOCKERFILE.rindex("\nRUN")
    assert "--chown" not in DOCKERFILE


def test_nothing_is_built_that_needs_a_card() -> None:
    assert not re.search(r"nvidia-smi|nvcc|--gpus|cuda-toolkit|-devel-", DOCKERFILE)


def test_weights_and_data_are_volumes() -> None:
    assert json.loads(instructions("VOLUME")[0]) == ["/home/cogvideo", "/data"]
    assert "COGVIDEO_DATA=/data" in DOCKERFILE
    assert "HOME=/home/cogvideo" in DOCKERFILE


def test_what_is_copied_is_all_that_runs() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    taken = {line[1:] for line in lines if line.startswith("!")}
    assert "*" in lines
    assert taken == {"app.py", "cogvideo", "kernels", "assets", "examples", "requirements.txt", "LICENSE", "NOTICE"}
    assert all((ROOT / name).exists() for name in taken)


@contextmanager
def serving(status: int) -> Iterator[tuple[int, list[str]]]:
    """A server on a free port that answers `status`; (its port, the paths that were asked for)."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port, asked
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(("status", "well"), [(200, True), (500, False)])
def test_the_health_check_tells_a_page_from_a_fault(status: int, well: bool) -> None:
    (check,) = instructions("HEALTHCHECK")
    _, program, *words = (sys.executable if w == "python" else w for w in ["", *json.loads(check.split("CMD ")[1])])
    with serving(status) as (port, asked):
        answer = run(program, *words, GRADIO_SERVER_PORT=str(port))
    assert (answer.returncode == 0) == well
    assert asked == ["/alive"]


def test_the_health_check_sees_that_nobody_is_there() -> None:
    (check,) = instructions("HEALTHCHECK")
    _, *words = json.loads(check.split("CMD ")[1])
    with serving(200) as (port, _):
        pass
    assert run(sys.executable, *words, GRADIO_SERVER_PORT=str(port)).returncode != 0


# --- the scripts ----------------------------------------------------------------------------------------------------


@pytest.fixture
def docker(tmp_path: Path) -> dict[str, str]:
    """The environment of an engine that only says what it was asked to do."""
    program = tmp_path / "docker"
    program.write_text('#!/bin/sh\nfor word in "$@"; do echo "$word"; done\n')
    program.chmod(0o755)
    return {"PATH": f"{tmp_path}:{os.environ['PATH']}"}


def test_build_image(docker: dict[str, str]) -> None:
    words = run("scripts/build_image.sh", **docker).stdout.split()
    assert words == ["build", "--tag", "cogvideo", "--build-arg", "DEVICE=gpu", "."]
    words = run("scripts/build_image.sh", "--cpu", "--pull", **docker).stdout.split()
    assert words == ["build", "--tag", "cogvideo:cpu", "--build-arg", "DEVICE=cpu", "--pull", "."]


def test_run_image_asks_for_cards_unless_told_otherwise(docker: dict[str, str]) -> None:
    words = run("scripts/run_image.sh", **docker).stdout.splitlines()
    assert words[-1] == "cogvideo"
    assert words[words.index("--gpus") + 1] == "all"
    words = run("scripts/run_image.sh", "--cpu", **docker).stdout.splitlines()
    assert words[-1] == "cogvideo:cpu"
    assert "--gpus" not in words


def test_run_image_serves_this_machine_alone(docker: dict[str, str]) -> None:
    words = run("scripts/run_image.sh", **docker, PORT="8000").stdout.splitlines()
    assert words[words.index("--publish") + 1] == "127.0.0.1:8000:7860"
    assert {"--read-only", "--cap-drop", "no-new-privileges"} <= set(words)
    assert "--user" not in words


def test_run_image_runs_commands(docker: dict[str, str], tmp_path: Path) -> None:
    sentence = "一只熊猫 在草地上向右跑"
    secret = {"HF_TOKEN": "hf_very_secret", "DATA": str(tmp_path)}
    words = run("scripts/run_image.sh", "--cpu", "generate", sentence, **docker, **secret).stdout.splitlines()
    assert words[-3:] == ["cogvideo:cpu", "generate", sentence]
    assert "--publish" not in words
    assert f"{tmp_path}:/data" in words
    assert words[words.index("--user") + 1] == f"{os.getuid()}:0"
    assert "HF_TOKEN" in words
    assert not [word for word in words if "hf_very_secret" in word]


def test_the_engine_can_be_another(tmp_path: Path) -> None:
    podman = tmp_path / "podman"
    podman.write_text('#!/bin/sh\necho podman "$1"\n')
    podman.chmod(0o755)
    assert shutil.which("sh")
    assert run("scripts/build_image.sh", ENGINE=str(podman)).stdout == "podman build\n"
