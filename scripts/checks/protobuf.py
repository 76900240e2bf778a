"""Runs the tests that depend on protobuf under several versions of it.

python -m scripts.checks.protobuf [VERSION ...] runs them under the versions named, by default under all of VERSIONS.
Exit status 0: all passed. With --install it only installs the three versions that `make test` needs.

Each version lies in a folder of its own inside the environment, `protobuf/VERSION`, ahead of the installed one on
PYTHONPATH. All other packages are those of the environment, which stays as it is.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VERSIONS = ("3.20.3", "4.21.12", "4.25.9", "5.29.6", "6.33.6", "7.36.2")
OLDEST, NEWEST = VERSIONS[0], VERSIONS[-1]
FIRST_STRICT = VERSIONS[1]
"""Of the first series that refuses icetk's own module; it makes classes by another call than later ones."""

# Text and image tokens, the toolkit, a film, training with a text tokenizer of its own, what doctor reports.
TESTS = ("text", "frames", "sat_bridge", "generate", "tutorial", "doctor")


def folder_of(version: str) -> Path:
    return Path(sys.prefix) / "protobuf" / version


def install(version: str) -> None:
    """Install one version into its folder, completely or not at all; nothing happens if it is there."""
    folder = folder_of(version)
    if folder.is_dir():
        return
    folder.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        unfinished = Path(name) / version
        options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:"]
        command = [sys.executable, "-m", "pip", "install", *options, "--target", str(unfinished)]
        subprocess.run([*command, f"protobuf=={version}"], check=True)
        unfinished.rename(folder)


def environment_of(version: str) -> dict[str, str]:
    """The variables of a process that imports `version`. Raises RuntimeError if another version would be imported."""
    folder = folder_of(version)
    if not folder.is_dir():
        raise RuntimeError(
            f"protobuf {version} is not in {folder}: run `python -m scripts.checks.protobuf --install`, "
            "or `make test`, which does the same"
        )
    environment = os.environ | {"PYTHONPATH": str(folder)}
    question = "import google.protobuf; print(google.protobuf.__version__)"
    answer = subprocess.run(
        [sys.executable, "-c", question], env=environment, capture_output=True, text=True, check=False
    )
    if answer.stdout.strip() != version:
        # protobuf before 4 claims the name `google` for its own folder at the start of Python.
        raise RuntimeError(
            f"protobuf {version} was expected, but {answer.stdout.strip() or answer.stderr} is imported: "
            "install protobuf 4 or newer into the environment, `pip install -U protobuf`"
        )
    return environment


def run_tests(version: str) -> bool:
    """Whether the tests pass under `version`."""
    print(f"protobuf {version}", flush=True)
    files = [str(ROOT / "tests" / f"test_{name}.py") for name in TESTS]
    command = [sys.executable, "-m", "pytest", "-n0", *files]
    return subprocess.run(command, cwd=ROOT, env=environment_of(version), check=False).returncode == 0


def version(text: str) -> str:
    if not re.fullmatch(r"\d+(\.\d+)+", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no version of protobuf; one is {NEWEST}")
    return text


def main() -> int:
    """Install the chosen versions and run the tests under each. Returns 1 if any of them fails."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("versions", nargs="*", type=version, metavar="VERSION", help=f"default: {' '.join(VERSIONS)}")
    parser.add_argument("--install", action="store_true", help="only install what `make test` needs")
    options = parser.parse_args()
    if options.install:
        for one in (OLDEST, FIRST_STRICT, NEWEST):
            install(one)
        return 0
    failed = []
    for one in options.versions or VERSIONS:
        install(one)
        if not run_tests(one):
            failed.append(one)
    print(f"failed under protobuf {', '.join(failed)}" if failed else "passed under every version")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
