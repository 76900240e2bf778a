"""The part of make.py that asks the commands and endpoints of 0a8de33 what they print and understand."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from making import BATCH, MODEL, PANDA, command, inside, write_json

SMALL = (
    "--layers",
    "2",
    "--hidden",
    "32",
    "--heads",
    "2",
    "--grid",
    "4",
    "--vocab",
    "64",
    "--stages",
    "first,superres",
)
SPOKEN = {
    "generate": ("generate", PANDA, "--model", MODEL, "--frames", "9", "--superres", "--json"),
    "generate many": (*BATCH, "--output-path", "films", "--frames", "5", "--json"),
    "generate refused": ("generate", PANDA, "--model", "mini", "--frames", "6", "--json"),
    "doctor": ("doctor", "--json"),
    "download": ("download", "mini", "--json"),
    "convert": ("convert", "published", "converted", "--json"),
    "evaluate": ("evaluate", "--count", "2", "--clips", "1", "--parts", "keyframes", "films", "--json"),
    "bench": (*("bench", *SMALL, "--device", "cpu", "--frames", "33", "--steps", "1", "--seconds", "0.01"), "--json"),
    "kernels": ("kernels", "--shape", "toy", "--seconds", "0.001", "--json"),
    "memory": ("memory", "--model", "mini", "--measure", "cpu", "--random", "--steps", "1", "--json", "memory.json"),
}
"""Commands whose output programs read. They run in a folder beside those of training and batch, with `published`."""


def command_line(checkout: Path) -> None:
    """`commands/flags.json`: all words of all commands. `commands/events.json`: all keys that `--json` prints."""
    from cogvideo.__main__ import COMMANDS

    known = {word: words_of(one.parser()) for word, one in COMMANDS.items()}
    with inside("commands"):
        shutil.copy("../batch/prompts.txt", "prompts.txt")
        shutil.copytree(checkout / "tests" / "golden", "published")
        spoken = {}
        for name, words in SPOKEN.items():
            said = command(*words, wanted=2 if "refused" in name else 0)
            texts = [Path("memory.json").read_text()] if name == "memory" else [said]
            texts = texts if name in ("memory", "kernels") else said.splitlines()
            spoken[name] = {"argv": words, "events": keys_by_event(map(json.loads, texts))}
        for left in list(Path().iterdir()):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        write_json("flags.json", known)
        write_json("events.json", spoken)


def words_of(parser: Any) -> dict[str, Any]:
    """Positional words, and each option with a value; `matters`: whether it changes what is read."""
    actions = [action for action in parser._actions if "--help" not in action.option_strings]
    positional = [value for action in actions if not action.option_strings for value in example(action)]
    usual = parser.parse_args(positional)
    options = []
    for action in actions:
        for flag in action.option_strings:
            words = [flag, *example(action)]
            options.append({"words": words, "matters": parser.parse_args([*positional, *words]) != usual})
    return {"positional": positional, "options": options}


def example(action: Any) -> list[str]:
    """What may stand after an option, or in the place of a positional argument."""
    if action.nargs == 0:
        return []
    return [str(list(action.choices)[-1])] if action.choices else ["7"]


def keys_by_event(objects: Iterator[Any]) -> dict[str, list[str]]:
    """Event -> all keys of its objects; those within others follow a dot."""
    found: dict[str, set[str]] = {}
    for value in objects:
        name = value.get("event", "") if isinstance(value, dict) else ""
        found.setdefault(name, set()).update(keys(value))
    return {name: sorted(known) for name, known in sorted(found.items())}


def keys(value: Any, before: str = "") -> Iterator[str]:
    if isinstance(value, list):
        for each in value:
            yield from keys(each, before)
    elif isinstance(value, dict):
        for name, each in value.items():
            yield f"{before}{name}"
            yield from keys(each, f"{before}{name}.")


def interfaces(_: Path) -> None:
    """`interfaces.json`: endpoints for programs with their parameters, and a recipe's options with their defaults."""
    import inspect
    from dataclasses import MISSING, fields

    from cogvideo.page_api import endpoints
    from cogvideo.training.codebook import CodesOptions
    from cogvideo.training.codec import CodecOptions
    from cogvideo.training.decoder import DecoderOptions
    from cogvideo.training.eye import EyeOptions
    from cogvideo.training.objective import AloneOptions, ObjectiveOptions
    from cogvideo.training.parts import PartOptions
    from cogvideo.training.run import RunOptions

    from cogvideo.config import PRESETS
    from cogvideo.jobs import Jobs

    kinds = {
        "run": RunOptions,
        "network of one's own clips": PartOptions,
        "network of the world": AloneOptions,
        "models": ObjectiveOptions,
        "codec": CodecOptions,
        "codes": CodesOptions,
        "decoder": DecoderOptions,
        "judge": EyeOptions,
    }
    jobs = Jobs(Path("scratch"), PRESETS["mini"], lambda: None)
    api = {endpoint.__name__: list(inspect.signature(endpoint).parameters) for endpoint in endpoints(jobs)}
    jobs.close()
    shutil.rmtree("scratch")
    options = {
        kind: {field.name: None if field.default is MISSING else field.default for field in fields(options)}
        for kind, options in kinds.items()
    }
    write_json("interfaces.json", {"endpoints": api, "recipe": options})
