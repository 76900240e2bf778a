"""Writing of files that are complete or absent."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def atomic_write(path: Path, keep_suffix: bool = False) -> Iterator[Path]:
    """Yield a temporary path in the same folder; after the block, flush that file to disk and rename it to `path`.

    If the block raises, the temporary file is removed and `path` is unchanged. `keep_suffix`: the temporary file has
    the suffix of `path`, for writers that choose a format by it; otherwise ".part". Raises OSError.
    """
    temporary = path.with_name(f".{secrets.token_hex(8)}.part{path.suffix if keep_suffix else ''}")
    try:
        yield temporary
        flush_to_disk(temporary)
        temporary.replace(path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def flush_to_disk(path: Path) -> None:
    """Write the file's data from the cache to the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
