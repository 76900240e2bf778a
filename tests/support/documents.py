"""The documents as tests see them: fenced blocks with what is said of them, commands, links. No test is in here."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

NEEDS = {"gpu", "43 GB", "network", "docker"}
"""What a block may ask for that a test has not got."""

_FENCE = re.compile(
    r"(?:^<!-- (?P<word>needs|run by): (?P<value>[^\n]*) -->\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.M | re.S
)


@dataclass(frozen=True)
class Block:
    """A fenced block. At most one of `needs` and `run_by` is not empty; neither: the tests run it as it stands."""

    document: str
    language: str
    text: str
    needs: tuple[str, ...] = ()
    run_by: tuple[str, ...] = ()

    @property
    def free(self) -> bool:
        return not self.needs and not self.run_by

    def commands(self) -> Iterator[tuple[str, ...]]:
        """The words of each command: lines joined where they end in a backslash, cut at &&, without comments."""
        for line in self.text.replace("\\\n", " ").splitlines():
            for part in line.split("&&"):
                if words := tuple(shlex.split(part, comments=True)):
                    yield words


def documents() -> list[str]:
    """Paths from the root of all documents that people read."""
    found = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*.md"), ROOT / "assets/mini/README.md"]
    return sorted(str(path.relative_to(ROOT)) for path in found)


def pairs() -> list[tuple[str, str]]:
    """(English, Chinese) of each document that there is twice."""
    names = set(documents())
    both = ((name, name.removesuffix(".md") + "_zh.md") for name in sorted(names))
    return [(name, other) for name, other in both if other in names]


def read(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def blocks(document: str, language: str) -> list[Block]:
    """The fenced blocks in one language, with the comment that stands right above each."""
    found = []
    for match in _FENCE.finditer(read(document)):
        if match["language"] == language:
            said = tuple(part.strip() for part in (match["value"] or "").split(",") if part.strip())
            kind = {"needs": "needs", "run by": "run_by"}.get(match["word"] or "")
            found.append(Block(document, language, match["text"], **({kind: said} if kind else {})))
    return found


def inline_commands(document: str) -> list[tuple[str, ...]]:
    """Commands between backticks in running text and tables."""
    found = re.findall(r"`((?:python|make|pip|cogvideo|docker|accelerate|torchrun) [^`\n]+)`", prose(document))
    return [tuple(shlex.split(part, comments=True)) for line in found for part in line.split("&&") if part.strip()]


def prose(document: str) -> str:
    """Running text, tables and headings: without the metadata for the hub and without fenced blocks."""
    text = re.sub(r"\A---\n.*?^---\n", "", read(document), flags=re.M | re.S)
    return re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)


def outline(document: str) -> dict[str, list[str] | int]:
    """What a translation keeps: the levels of headings, how many rows of tables and points of lists there are."""
    text = prose(document)
    counted = {
        name: len(re.findall(mark, text, flags=re.M)) for name, mark in (("rows", r"^\|"), ("points", r"^[-*] "))
    }
    return {"headings": re.findall(r"^#+(?= )", text, flags=re.M), **counted}


def names(document: str) -> set[str]:
    """What stands between backticks, unless it is a sentence or the address of one of two languages."""
    found = re.findall(r"`([^`\n]+)`", prose(document))
    return {name.replace("_zh.", ".") for name in found if name.isascii()}


def figures(document: str) -> set[str]:
    """All numbers of the running text but those before a word for a power of ten, which differ between languages."""
    text = re.sub(r"\]\([^)]*\)|`[^`\n]*`", "", prose(document))
    for number, month in enumerate(("November", "December"), 11):
        text = re.sub(rf"\s{month}\s", f" {number} ", text)
    found = re.findall(r"(?<![A-Za-z0-9_.])(\d[\d,]*+(?:\.\d+)?+)(?! ?(?:[万亿]|[mb]illion))", text)
    return {number.replace(",", "") for number in found}


def links(document: str) -> set[str]:
    """Files that a document links to or shows, as paths from the root, without anchors; no addresses."""
    text = read(document)
    found = re.findall(r"\]\(([^)#\s]+)[^)]*\)", text) + re.findall(r'src="([^"]+)"', text)
    here = (ROOT / document).parent
    return {
        str((here / link).resolve().relative_to(ROOT)) for link in found if "://" not in link and "mailto:" not in link
    }
