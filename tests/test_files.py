"""`atomic_write`: a file is complete or absent."""

from __future__ import annotations

from pathlib import Path

import pytest

from cogvideo.files import atomic_write


def test_file_appears_with_its_content_only_after_the_block(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with atomic_write(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("keep_suffix", "suffix"), [(True, ".gif"), (False, ".part")])
def test_temporary_file_is_in_the_same_folder_with_the_suffix_asked_for(
    tmp_path: Path, keep_suffix: bool, suffix: str
) -> None:
    with atomic_write(tmp_path / "a.gif", keep_suffix) as temporary:
        temporary.touch()
    assert (temporary.parent, temporary.suffix) == (tmp_path, suffix)


def test_existing_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    with atomic_write(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def test_error_in_the_block_leaves_the_file_and_removes_the_temporary_one(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_write(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_block_that_writes_nothing_raises_and_leaves_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(FileNotFoundError), atomic_write(path):
        pass
    assert path.read_text() == "old"


def test_two_writers_of_one_file_use_different_temporary_files(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with atomic_write(path) as first, atomic_write(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]
