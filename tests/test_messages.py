"""The catalogue of sentences: every key that the code names exists, with the values that it takes, and is used."""

from __future__ import annotations

import ast
import re
import string
from pathlib import Path

import pytest

from cogvideo.messages import message, sentences

ROOT = Path(__file__).resolve().parents[1]
CHINESE = re.compile(r"[\u4e00-\u9fff]")


def calls() -> list[tuple[str, str, set[str]]]:
    """Every call of `message` in the package: where it is, its key, the names of its values."""
    found = []
    for path in sorted((ROOT / "cogvideo").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "message":
                assert isinstance(node.args[0], ast.Constant), f"{path}:{node.lineno}: the key is not a constant"
                names = {keyword.arg for keyword in node.keywords if keyword.arg}
                found.append((f"{path.relative_to(ROOT)}:{node.lineno}", str(node.args[0].value), names))
    return found


def fields(sentence: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(sentence) if name}


@pytest.mark.parametrize(("place", "key", "names"), calls())
def test_call_names_an_existing_sentence_and_all_of_its_values(place: str, key: str, names: set[str]) -> None:
    zh, en = sentences("library")[key]
    assert fields(zh) | fields(en) == names, place


def test_every_sentence_is_used() -> None:
    assert {key for _, key, _ in calls()} == set(sentences("library"))


@pytest.mark.parametrize("section", ["library", "page"])
def test_sentences_exist_in_both_languages(section: str) -> None:
    for key, (zh, en) in sentences(section).items():
        assert zh.strip() and en.strip(), key


def test_no_chinese_sentence_is_written_in_the_code() -> None:
    """Words of the synthetic world, of tokenizers, and help texts of the command line are data of their modules."""
    data = ("synthetic_vocabulary.py", "synthetic_world.py", "text_tokenizer.py", "config.py", "text.py", "prompt.py")
    for path in sorted((ROOT / "cogvideo").rglob("*.py")):
        if path.name in data or path.parent.name == "cli":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id.endswith("Error"):
                texts = [arg for arg in node.args if isinstance(arg, ast.Constant | ast.JoinedStr)]
                assert not any(CHINESE.search(ast.unparse(text)) for text in texts), f"{path}:{node.lineno}"


def test_values_are_formatted_by_the_sentence() -> None:
    key = next(key for key, (zh, _) in sentences("library").items() if fields(zh))
    names = fields("".join(sentences("library")[key]))
    with pytest.raises(KeyError):
        message(key)
    assert all(isinstance(text, str) for text in message(key, **dict.fromkeys(names, 1)))


def test_unknown_key_raises_key_error() -> None:
    with pytest.raises(KeyError, match="no_such_sentence"):
        message("no_such_sentence")
