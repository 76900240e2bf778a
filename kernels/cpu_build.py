"""Compilation of the C sources in `csrc` for this processor, once, on first use. Nothing is compiled at import.

In: the name of a C file. Out: the library, or the reason why there is none. Libraries are stored in the user's cache
folder, under a name that depends on the source, the compiler's flags and the processor.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

SWITCH: Final = "COGVIDEO_COMPILE"
"""Environment variable. 0: use plain PyTorch only."""

FLAGS: Final = ("-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-fPIC", "-shared")
SECONDS: Final = 120
"""Timeout of the compiler."""


def unsupported_reason(source: str) -> str | None:
    """Return why the library of `source` cannot be used. None if it can. The first call compiles it (2 s)."""
    if os.environ.get(SWITCH) == "0":
        return f"{SWITCH}=0 is set"
    return _load(source)[1]


def library(source: str) -> ctypes.CDLL:
    """Return the compiled library. Raises RuntimeError unless `unsupported_reason` is None."""
    loaded, reason = _load(source)
    if loaded is None:
        raise RuntimeError(f"{source} could not be compiled: {reason}")
    return loaded


@functools.cache
def _load(source: str) -> tuple[ctypes.CDLL | None, str | None]:
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None, "there is no C compiler (apt install gcc)"
    path = Path(__file__).parent / "csrc" / source
    try:
        return ctypes.CDLL(str(_compiled(compiler, path))), None
    except (OSError, subprocess.SubprocessError) as error:
        output = getattr(error, "stderr", None) or str(error)
        return None, f"{compiler} could not compile {path.name}: {str(output).strip().splitlines()[-1]}"


def _compiled(compiler: str, path: Path) -> Path:
    """Return the library's file; compile it if necessary. Raises OSError, SubprocessError."""
    sources = [part.read_text(encoding="utf-8") for part in sorted(path.parent.glob("*.[ch]"))]
    text = "\n".join((*sources, compiler, *FLAGS, _processor()))
    name = f"{path.stem}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.so"
    target = _folder() / name
    if not target.is_file():
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            output = Path(folder) / name
            try:
                _run(compiler, "-march=native", *FLAGS, str(path), "-o", str(output), "-lm")
            except subprocess.CalledProcessError:  # some compilers do not support their processor
                _run(compiler, *FLAGS, str(path), "-o", str(output), "-lm")
            output.replace(target)
    return target


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=SECONDS)


def _folder() -> Path:
    """Return the folder of the libraries: the user's cache, or a new private folder if the cache is not writable."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "cogvideo"
    try:
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        if os.access(root, os.W_OK):
            return root
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="cogvideo-"))


def _processor() -> str:
    """Return a description that distinguishes this processor from others that may share the cache folder."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    return "\n".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))
