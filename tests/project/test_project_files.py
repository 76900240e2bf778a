"""What stands beside the code says what is so: citation, changes, notices, the card of the small model."""

from __future__ import annotations

import json
import re
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard, SpaceCard

from cogvideo.config import PRESETS
from tests.support.documents import read

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CARD = "assets/mini/README.md"


def test_the_citation_is_of_this_version_and_names_the_paper() -> None:
    citation = yaml.safe_load(read("CITATION.cff"))
    assert citation["cff-version"] == "1.2.0"
    assert {"title", "message", "authors", "version"} <= set(citation)
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    paper = citation["preferred-citation"]
    names = [author["family-names"] for author in paper["authors"]]
    for readme in ("README.md", "README_zh.md"):
        (entry,) = re.findall(r"^```bibtex\n(.*?)^```", read(readme), flags=re.M | re.S)
        assert paper["title"] in entry
        assert [name for name in names if name in entry] == names
        assert paper["identifiers"][0]["value"].removeprefix("arXiv:") in entry


def test_the_changes_tell_of_this_version() -> None:
    headings = re.findall(r"^## (.+)$", read("CHANGELOG.md"), flags=re.M)
    assert any(heading.split()[0] == PROJECT["version"] for heading in headings)


def test_the_licence_is_the_one_that_is_declared() -> None:
    assert "Apache License\n                           Version 2.0" in read("LICENSE")
    assert "Apache License, Version 2.0" in read("NOTICE")
    assert PROJECT["license"] == "Apache-2.0"


def required() -> list[tuple[str, str]]:
    """(name, what holds its version) of every line of requirements.txt."""
    lines = read("requirements.txt").splitlines()
    found = [re.match(r"([\w-]+)([<>=!,.\d]*)", line) for line in lines if line and not line.startswith("#")]
    return [(match[1], match[2]) for match in found if match]


@pytest.mark.parametrize(("name", "version"), required())
def test_every_package_is_in_the_notices_with_a_licence(name: str, version: str) -> None:
    row = re.search(rf"^\| \*\*{name}\*\* (\S*) \| (.+) \|$", read("THIRD_PARTY.md"), flags=re.M | re.I)
    assert row, f"run `python scripts/checks/list_notices.py`: {name} is new"
    assert sorted(row[1].split(",")) == sorted(version.split(",")), (
        f"run `python scripts/checks/list_notices.py` for {name}"
    )
    assert row[2] != "see the package"


def test_the_notices_tell_of_what_is_no_python() -> None:
    notices = read("THIRD_PARTY.md")
    for word in ("FFmpeg", "GPL 3", "NVIDIA", "Noto Color Emoji", "The CogVideo License", "tests/golden"):
        assert word in notices


def test_the_card_names_every_file_and_the_sizes_of_the_model() -> None:
    card = read(CARD)
    files = {path.name for path in (ROOT / "assets" / "mini").iterdir() if path.name != "README.md"}
    assert {name for name in files if f"`{name}`" not in card} == set()
    model = PRESETS["mini"].model
    assert f"{model.layers} layers, width {model.hidden}, {model.heads} heads" in card
    world = json.loads(read("assets/mini/world.json"))
    told = f"{len(world['subjects'])} subjects, {len(world['scenes'])} scenes, {len(world['motions'])} movements"
    assert told in card


def test_the_card_says_what_a_card_must() -> None:
    card = read(CARD)
    for heading in ("How it was made", "How good it is", "Licences"):
        assert re.search(rf"^## {heading}", card, flags=re.M), heading
    assert "What looks wrong" in card
    assert "python -m cogvideo evaluate" in card


def test_the_hub_can_read_both_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    build_space = import_module("build_space")
    card = ModelCard(read(CARD)).data
    assert (card.license, card.language, card.pipeline_tag) == ("apache-2.0", ["zh"], "text-to-video")
    assert {"text-to-video", "cogvideo", "chinese"} <= set(card.tags)
    assert card.datasets is None  # the world is made by code; a name would lead nowhere
    space = SpaceCard(build_space.space_card(ROOT)).data
    assert (space.sdk, space.app_file, space.license) == ("gradio", "app.py", card.license)
    assert set(space.tags) <= {*card.tags}
