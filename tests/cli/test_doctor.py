"""`cogvideo doctor` on machines that are well and on machines that are not."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from cogvideo.cli import doctor, doctor_checks
from cogvideo.cli.doctor_checks import CheckResult, DeviceInfo
from cogvideo.config import ASSETS, PRESETS
from cogvideo.runtime.memory_estimate import peak_bytes
from cogvideo.runtime.memory_presets import MEMORY_PRESETS

ROOT = Path(__file__).resolve().parents[2]
GIB = 2**30
CPU = DeviceInfo("cpu", "a processor", 16 * GIB, 32 * GIB)


def card(gigabytes: float) -> DeviceInfo:
    return DeviceInfo("cuda", "cuda:0 a card", int(gigabytes * 1e9), int(gigabytes * 1e9))


def fitting(model: str, *there: DeviceInfo) -> set[str]:
    """Names of the memory presets that the model fits under."""
    found = [
        f.fact
        for f in doctor_checks.presets(model, there)
        if f.status == "ok" and f.fact.startswith(f"{model} --memory")
    ]
    return {fact.split()[2].rstrip(":") for fact in found}


def bad(findings: list[CheckResult]) -> list[CheckResult]:
    return [finding for finding in findings if finding.status == "error"]


@pytest.fixture
def well(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine with a processor alone, nothing of the published model, and an empty folder to be in."""
    monkeypatch.setattr(doctor_checks, "machines", lambda: [CPU])
    monkeypatch.setenv("SAT_HOME", str(tmp_path / "sat"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("well")
def test_mini_can_run_where_everything_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main([]) == 0
    said = capsys.readouterr().out
    assert "mini 可以运行。\nmini can run." in said
    assert f"Python {sys.version.split()[0]}" in said
    assert f"torch {importlib.metadata.version('torch')}" in said


@pytest.mark.usefixtures("well")
def test_the_published_model_is_missed_only_where_it_is_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--model", "cogvideo"]) == 1
    said = capsys.readouterr().out
    assert "cogvideo-stage1" in said
    assert "ice_image.pt" in said
    assert "python -m cogvideo download cogvideo" in said
    assert "cogvideo cannot run yet" in said


@pytest.mark.usefixtures("well")
def test_scripts_hear_every_finding(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--json"]) == 0
    heard = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {event["topic"] for event in heard[:-1]} >= {"software", "device", "memory", "files"}
    assert heard[-1]["type"] == "result"
    assert heard[-1]["able"] is True


@pytest.mark.parametrize("gigabytes", [80, 24, 12, 1])
def test_which_presets_fit_a_card(gigabytes: float) -> None:
    size = PRESETS["cogvideo"].model
    cards = [row for row in MEMORY_PRESETS.values() if row.device == "cuda"]
    assert fitting("cogvideo", card(gigabytes)) == {
        row.name for row in cards if peak_bytes(size, row) <= gigabytes * 1e9
    }


def test_nothing_fits_a_small_machine() -> None:
    assert fitting("cogvideo", card(1), CPU) == set()
    assert len(bad(list(doctor_checks.presets("cogvideo", [card(1), CPU])))) == 1
    assert not bad(list(doctor_checks.presets("mini", [card(1), CPU])))


@pytest.mark.parametrize("fault", ["missing", "empty", "pointer"])
def test_a_broken_file_of_mini_is_named(
    fault: str, well: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = well / "assets" / "mini"
    folder.mkdir(parents=True)
    for name in doctor_checks.MINI:
        shutil.copy(ASSETS / "mini" / name, folder)
    path = folder / "stage2.safetensors"
    path.unlink()
    if fault != "missing":
        path.write_text(
            "" if fault == "empty" else "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
        )
    monkeypatch.setattr(doctor_checks, "ASSETS", well / "assets")
    assert doctor.main([]) == 1
    said = capsys.readouterr().out
    assert "stage2.safetensors" in said
    assert "git checkout -- assets/mini" in said
    assert "stage1.safetensors" not in said


@pytest.mark.parametrize(
    ("name", "version", "status"),
    [
        ("torch", "2.13.0+cpu", "ok"),
        ("torch", "2.1.0", "note"),
        ("protobuf", "3.18.3", "note"),
        ("protobuf", "3.20.3", "ok"),
        ("protobuf", "7.36.2", "ok"),
        ("gradio", None, "error"),
    ],
)
def test_packages(name: str, version: str | None, status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def installed(asked: str) -> str:
        if version is None:
            raise importlib.metadata.PackageNotFoundError(asked)
        return version

    monkeypatch.setattr(importlib.metadata, "version", installed)
    wanted = next(line for line in doctor_checks._required() if Requirement(line).name == name)
    finding = doctor_checks._package(Requirement(wanted))
    assert finding.status == status
    assert ("pip install" in finding.en) == (status != "ok")


@pytest.mark.parametrize(
    ("tensorboardx", "protobuf", "state"),
    [
        ("2.6", "3.18.3", "note"),
        ("2.6", "3.20.3", "note"),
        ("2.6", "7.36.2", "error"),
        ("2.6", "4.21.12", "error"),
        ("2.6", None, "note"),
        ("2.6.1", "7.36.2", "note"),
        ("2.6.5", "7.36.2", "ok"),
    ],
)
def test_tensorboardx_is_bad_only_beside_a_protobuf_that_refuses_it(
    tensorboardx: str, protobuf: str | None, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def installed(asked: str) -> str:
        if asked == "protobuf" and protobuf is None:
            raise importlib.metadata.PackageNotFoundError(asked)
        return {"tensorboardX": tensorboardx, "protobuf": str(protobuf)}[asked]

    monkeypatch.setattr(importlib.metadata, "version", installed)
    wanted = next(line for line in doctor_checks._required() if line.startswith("tensorboardX"))
    assert doctor_checks._package(Requirement(wanted)).status == state


@pytest.mark.usefixtures("well")
def test_secrets_are_not_shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_very_secret")
    monkeypatch.setenv("COGVIDEO_MEMORY", "24g")
    doctor.main([])
    said = capsys.readouterr().out
    assert "COGVIDEO_MEMORY=24g" in said
    assert "HF_TOKEN" in said
    assert "hf_very_secret" not in said


def test_it_needs_nothing_but_python() -> None:
    code = f"import sys; sys.path[:0] = [{str(ROOT)!r}]; from cogvideo.cli.main import main; sys.exit(main(['doctor']))"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    answer = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, timeout=120, check=False, env=environment
    )
    assert answer.returncode == 1, answer.stderr
    assert "pip install -r requirements.txt" in answer.stdout
    assert "mini cannot run yet" in answer.stdout
