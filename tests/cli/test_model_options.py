"""Options that commands share, and the names that options had in version 0.1."""

from __future__ import annotations

import pytest

from cogvideo.cli import console
from cogvideo.cli.commands import COMMANDS
from cogvideo.cli.model_options import MODEL_OPTIONS, add_model_options
from cogvideo.errors import RequestError

RENAMED = [
    ("generate", ["--out", "a.gif"], ["--output", "a.gif"]),
    ("generate", ["--eight-bit"], ["--quantization", "int8"]),
    ("serve", ["--eight-bit"], ["--quantization", "int8"]),
    ("serve", ["--any-port"], ["--find-port"]),
    ("serve", ["--drop-abandoned", "7"], ["--queue-timeout", "7"]),
    ("serve", ["--unload-after", "7"], ["--idle-timeout", "7"]),
    ("serve", ["--keep-gb", "7"], ["--max-storage-gb", "7"]),
    ("bench", ["--ahead", "1,8"], ["--lookahead", "1,8"]),
]


@pytest.mark.parametrize(("command", "old", "new"), RENAMED)
def test_old_name_of_an_option_has_the_same_effect(command: str, old: list[str], new: list[str]) -> None:
    parser = COMMANDS[command].parser()
    assert parser.parse_args(old) == parser.parse_args(new)
    assert parser.parse_args(new) != parser.parse_args([])


@pytest.mark.parametrize(("command", "old", "new"), RENAMED)
def test_old_name_of_an_option_is_hidden(command: str, old: list[str], new: list[str]) -> None:
    words = COMMANDS[command].parser().format_help().replace(",", " ").split()
    assert new[0] in words
    assert old[0] not in words


@pytest.mark.parametrize("option", MODEL_OPTIONS)
def test_generate_and_serve_describe_an_option_in_the_same_words(option: str) -> None:
    described = {
        action.help
        for command in ("generate", "serve")
        for action in COMMANDS[command].parser()._actions
        if f"--{option}" in action.option_strings
    }
    assert len(described) == 1


def test_only_the_chosen_options_are_added_with_their_defaults() -> None:
    parser = console.Parser("some")
    add_model_options(parser, ["model", "device"], model="mini", device="cpu")
    assert vars(parser.parse_args([])) == {"model": "mini", "device": "cpu"}
    with pytest.raises(RequestError):
        parser.parse_args(["--offload"])
