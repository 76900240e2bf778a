"""Protobuf: the oldest and the newest version give the same ids, films and trained vocabularies, and lose nothing.

The versions come from `python -m scripts.checks.protobuf --install`, a step of `make test`. `make protobuf` tests more.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cogvideo.tokenizers.text import TextTokenizer
from scripts.checks.protobuf import FIRST_STRICT, NEWEST, OLDEST, environment_of
from tests.support.protobuf_report import PROMPTS
from tests.support.toy_text import train_text_model

ROOT = Path(__file__).resolve().parents[2]
MINI = ROOT / "assets" / "mini" / "text.model"

EXTENSION = bytes((0xC2, 0x0C, 3)) + b"abc"
"""Field 200, which SentencePiece's format reserves for extensions: three bytes."""


def with_extensions(vocabulary: bytes) -> bytes:
    """The same vocabulary with one more piece, and with an extension in that piece and in the model."""
    end = 0
    while vocabulary[end] == 0x0A:  # the field `pieces`; each is shorter than 128 bytes
        end += 2 + vocabulary[end + 1]
    piece = bytes((0x0A, 3)) + b"<e>" + bytes((0x15, 0, 0, 0, 0, 0x18, 3)) + EXTENSION  # text, score 0, type CONTROL
    return vocabulary[:end] + bytes((0x0A, len(piece))) + piece + vocabulary[end:] + EXTENSION


@pytest.fixture(scope="module")
def vocabularies(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The shipped one; one with rules of normalisation, as the released one has; the same with extensions."""
    toy = train_text_model(tmp_path_factory.mktemp("toy"))
    extended = tmp_path_factory.mktemp("extended") / "text.model"
    extended.write_bytes(with_extensions(toy.read_bytes()))
    return [MINI, toy, extended]


@pytest.fixture(scope="module")
def reports(vocabularies: list[Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Version -> what tests/support/protobuf_report.py prints under it."""
    found = {}
    for version in (OLDEST, NEWEST):
        environment = environment_of(version)
        environment["PYTHONPATH"] += f"{os.pathsep}{ROOT}"
        command = [
            sys.executable,
            str(ROOT / "tests" / "support" / "protobuf_report.py"),
            str(tmp_path_factory.mktemp("made")),
        ]
        command += map(str, vocabularies)
        answer = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert answer.returncode == 0, answer.stderr
        found[version] = json.loads(answer.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_ids_under_a_version_are_those_of_the_environment(
    version: str, reports: dict[str, dict[str, Any]], vocabularies: list[Path]
) -> None:
    report = reports[version]
    assert report["protobuf"] == version
    tokenizers = [TextTokenizer(path, image_tokens=20000) for path in vocabularies]
    ids = [[tokenizer.encode(prompt) for prompt in PROMPTS] for tokenizer in tokenizers]
    assert [vocabulary["ids"] for vocabulary in report["vocabularies"][:-1]] == ids


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_fields_that_icetk_does_not_read_are_kept(version: str, reports: dict[str, dict[str, Any]]) -> None:
    for vocabulary in reports[version]["vocabularies"]:
        assert vocabulary["unchanged"]
        assert vocabulary["added"]


def test_oldest_and_newest_make_the_same(reports: dict[str, dict[str, Any]]) -> None:
    differs = {"protobuf", "default_pool_is_free"}  # below protobuf 4 icetk's own module is used
    oldest, newest = (
        {name: value for name, value in reports[version].items() if name not in differs} for version in (OLDEST, NEWEST)
    )
    assert oldest["status"] == 0
    assert oldest["scalars"]
    assert oldest == newest


@pytest.mark.parametrize("version", [FIRST_STRICT, NEWEST])
@pytest.mark.parametrize("implementation", ["upb", "python"])
def test_the_class_made_at_run_time_reads_and_writes_a_whole_file(
    version: str, implementation: str, vocabularies: list[Path]
) -> None:
    code = (
        "import sys, pathlib; from cogvideo import compat; make = compat._model_class();"
        "read = pathlib.Path(sys.argv[1]).read_bytes(); model = make.FromString(read);"
        "assert model.SerializeToString() == read;"
        "piece = model.SentencePiece(piece='<a>', score=0); model.pieces.append(piece);"
        "print(make.FromString(model.SerializeToString()).pieces[-1].piece)"
    )
    environment = environment_of(version) | {"PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": implementation}
    command = [sys.executable, "-c", code, str(vocabularies[-1])]
    answer = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout == "<a>\n"


def test_a_version_that_is_not_installed_is_named_with_the_command() -> None:
    with pytest.raises(RuntimeError, match=r"protobuf 0\.0 is not in .*scripts\.checks\.protobuf --install"):
        environment_of("0.0")


def test_the_default_pool_stays_free_under_the_newest(reports: dict[str, dict[str, Any]]) -> None:
    assert reports[NEWEST]["default_pool_is_free"]
