"""Builds the site: the documents of the repository and a reference of its code. Needs requirements-docs.txt only.

python scripts/docs/build_site.py [--out site] gathers the documents where mkdocs.yml looks for them, writes a page for
every module, and calls MkDocs, which must not have a single warning.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
GATHERED = Path("build") / "documents"
DOCUMENTS = (
    "*.md",
    "LICENSE",
    "NOTICE",
    "CITATION.cff",
    "docs/**/*",
    "examples/**/*",
    "scripts/*.sh",
    "assets/readme/*",
    "assets/bench/*",
    "assets/web/favicon.svg",
    "assets/mini/README.md",
)
"""What the site shows or links to, as globs from the root."""

PACKAGES = ("cogvideo", "kernels")


def modules() -> Iterator[str]:
    """The dotted names of all modules, packages before what they hold; `app` first."""
    yield "app"
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            if not path.stem.startswith("_"):
                yield ".".join(parts)
            elif path.stem == "__init__":
                yield ".".join(parts[:-1])


def gather(folder: Path) -> list[str]:
    """Copies every document to the place below `folder` that it has in the repository; returns the pages."""
    pages = []
    for pattern in DOCUMENTS:
        for path in ROOT.glob(pattern):
            if path.is_file() and "__pycache__" not in path.parts:
                target = folder / path.relative_to(ROOT)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
                if path.suffix == ".md":
                    target.write_text(plain(target.read_text(encoding="utf-8")), encoding="utf-8")
                    pages.append(str(path.relative_to(ROOT)))
    return sorted(pages)


def leaves(menu: Any) -> Iterator[str]:
    """The pages of a menu as mkdocs.yml writes it."""
    if isinstance(menu, str):
        yield menu
    else:
        for entry in menu.values() if isinstance(menu, dict) else menu:
            yield from leaves(entry)


def plain(document: str) -> str:
    """Return a document without the metadata that only a hub reads: MkDocs would take the first block for its own."""
    return re.sub(r"\A---\n.*?\n---\n", "", document, flags=re.S)


def reference(folder: Path) -> list[dict[str, str]]:
    """Writes a page for every module; returns the entries of the menu."""
    (folder / "reference").mkdir(parents=True, exist_ok=True)
    entries = []
    for name in modules():
        path = f"reference/{name}.md"
        (folder / path).write_text(f"# {name}\n\n::: {name}\n", encoding="utf-8")
        entries.append({name: path})
    return entries


def build(site: Path) -> None:
    """The whole site into `site`. Raises mkdocs.exceptions.Abort where there was a warning."""
    from mkdocs.commands.build import build as mkdocs_build
    from mkdocs.config import load_config

    folder = ROOT / GATHERED
    shutil.rmtree(folder, ignore_errors=True)
    gathered = gather(folder)
    config = load_config(str(ROOT / "mkdocs.yml"), docs_dir=str(folder), site_dir=str(site), strict=True)
    menu: list[Any] = list(config.nav or [])
    if others := [path for path in gathered if path not in set(leaves(menu))]:
        menu.append({"More": others})
    config.nav = [*menu, {"Reference": reference(folder)}]
    config.plugins.on_startup(command="build", dirty=False)
    try:
        mkdocs_build(config)
    finally:
        config.plugins.on_shutdown()


def main(arguments: Sequence[str] | None = None) -> int:
    """Builds the site and prints where it begins; always 0, a fault is an exception."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "site", metavar="DIR", help="default: site")
    options = parser.parse_args(arguments)
    build(options.out.resolve())
    sys.stdout.write(f"{options.out / 'index.html'}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
