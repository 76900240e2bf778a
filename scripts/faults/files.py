"""Files that somebody damaged, or made to do harm: pictures, films with settings, archives, weights, labels.

Each sound file is changed at random places and read as the program reads it. What is expected: the content, or the one
error that becomes a sentence; nothing else, nothing outside the folder, no memory filled.
"""

from __future__ import annotations

import io
import json
import random
import warnings
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from scripts.faults.report import Counts, Fault, Unexpected, expect

SETTINGS = {"prompt": "熊猫", "seed": 3, "frames": 9, "seconds": 2.0, "superres": False, "model": "mini"}
ODD: list[Any] = [
    1.5,
    True,
    None,
    "7",
    [],
    {},
    -1,
    10**30,
    float("nan"),
    float("inf"),
    [[1]],
    {"top_k": 1.5},
    "猫" * 999,
]
HARMFUL = {
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script><image href="file:///etc/passwd"/></svg>',
    "html": b"<!doctype html><script>alert(1)</script>",
    "gif and html": b"GIF89a/*\x00\x00\x00\x00*/=1;<script>alert(1)</script>",
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file run\n",
    "psd": b"8BPS\0\1" + bytes(6) + b"\0\3\0\0\0\1\0\0\0\1\0\x08\0\3" + bytes(14) + b"abc",
    "empty": b"",
    "zeros": bytes(10**6),
}


def damaged(content: bytes, dice: random.Random) -> bytes:
    """A few bytes changed, lost or added, or the end cut off."""
    changed = bytearray(content)
    for _ in range(dice.choice((1, 1, 2, 4, 16))):
        at = dice.randrange(len(changed) + 1)
        way = dice.randrange(4)
        if way == 0:
            del changed[at : at + dice.randrange(1, 40)]
        elif way == 1:
            changed[at:at] = dice.randbytes(dice.randrange(1, 20))
        elif way == 2 and dice.random() < 0.3:
            del changed[at:]
        elif at < len(changed):
            changed[at] = dice.randrange(256)
    return bytes(changed)


def attempt(read: Callable[[], object], allowed: type[Exception], what: str, counts: Counts) -> None:
    """Counts whether `read` succeeded or refused. Raises Unexpected where anything else happened."""
    try:
        read()
    except allowed:
        counts["refused"] += 1
    except Exception as error:
        raise Unexpected(f"{what}: {type(error).__name__}: {error}") from error
    else:
        counts["read"] += 1


def pictures(folder: Path, times: int) -> Counts:
    """A first frame from an upload: every format damaged, and what is no picture at all."""
    from cogvideo.errors import RequestError
    from cogvideo.media.images import read_image

    counts, dice, path = Counts(), random.Random(1), folder / "upload"
    sound = [_picture(kind) for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")]
    with warnings.catch_warnings(action="ignore"):
        for number in range(times):
            path.write_bytes(damaged(sound[number % len(sound)], dice))
            attempt(lambda: read_image(path, (64, 64)), RequestError, "picture", counts)
    for name, content in HARMFUL.items() | {"bomb": _bomb(), "wide": _claims_to_be_huge()}.items():
        path.write_bytes(content)
        before = counts["refused"]
        attempt(lambda: read_image(path, (64, 64)), RequestError, name, counts)
        expect(counts["refused"] == before + 1, f"{name} was taken for a picture")
    return counts


def settings(folder: Path, times: int) -> Counts:
    """Settings from a dropped film: damaged, impossible, or of somebody else's making."""
    from cogvideo.errors import RequestError
    from cogvideo.jobs.artifacts import read_settings
    from cogvideo.media.video import write_video

    counts, dice, path = Counts(), random.Random(2), folder / "film.gif"
    for number in range(times):
        values: dict[str, Any] = dict(SETTINGS)
        values[dice.choice([*values, "sampling", "between_seed", "drafts", "first_frame", "clip"])] = dice.choice(ODD)
        gif = _gif(json.dumps(values))
        path.write_bytes(damaged(gif, dice) if number % 2 else gif)
        attempt(lambda: read_settings(path), RequestError, f"settings {values}", counts)
    for name, comment in {"deep": "[" * 10**5, "long": json.dumps({**SETTINGS, "prompt": "猫" * 10**6})}.items():
        path.write_bytes(_gif(comment))
        expect(read_settings(path) is None, f"{name} settings were taken")
    film = write_video(folder / "film.mp4", np.zeros((2, 16, 16, 3), np.uint8), 1.0, SETTINGS).read_bytes()
    mp4 = folder / "damaged.mp4"
    for content in [*HARMFUL.values(), *(damaged(film, dice) for _ in range(max(3, times // 100)))]:
        mp4.write_bytes(content)
        attempt(lambda: read_settings(mp4), RequestError, "mp4", counts)
    return counts


def archives(folder: Path, times: int) -> Counts:
    """Archives of weights: damaged, with paths that lead out, with names that do not go together, bombs."""
    from tqdm import tqdm

    from cogvideo.weights.http_download import InvalidSourceError
    from cogvideo.weights.verify import unpack

    counts, dice, path = Counts(), random.Random(3), folder / "archive.zip"
    silent = partial(tqdm, disable=True)
    methods = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    weights = dice.randbytes(2000)
    sound = [
        _archive({"m/model_config.json": b"{}", "m/latest": b"1", "m/1/mp_rank_00_model_states.pt": weights}, method)
        for method in methods
    ]
    for number in range(times):
        path.write_bytes(damaged(sound[number % len(sound)], dice))
        attempt(partial(unpack, path, "m", folder / f"{number}", silent), InvalidSourceError, "archive", counts)
    for name, members in {
        "absolute": {"/m/outside": b"x"},
        "upwards": {"m/../../outside": b"x"},
        "backslashes": {"m\\..\\..\\outside": b"x"},
        "drive": {"C:/m/outside": b"x"},
        "file as folder": {"m/a": b"x", "m/a/b/c": b"x"},
        "long name": {"m/" + "a" * 300: b"x"},
        "bomb": {"m/model_config.json": b"{}", "m/latest": b"1", "m/1/mp_rank_00_model_states.pt": bytes(10**7)},
    }.items():
        path.write_bytes(_archive(members, zipfile.ZIP_DEFLATED))
        before = counts["refused"]
        attempt(partial(unpack, path, "m", folder / name, silent), InvalidSourceError, name, counts)
        expect(counts["refused"] == before + 1, f"the archive “{name}” was unpacked")
        inside = folder / name
        expect(
            not inside.exists() or sum(p.stat().st_size for p in inside.rglob("*")) < 10**5, f"{name} filled the disk"
        )
    expect(not list(folder.parent.glob("outside*")) and not (folder / "outside").exists(), "an archive wrote outside")
    return counts


def tensors(folder: Path, times: int) -> Counts:
    """Weights in both formats and cluster labels, damaged."""
    import torch
    from safetensors.torch import save

    from cogvideo.errors import WeightsError
    from cogvideo.pipeline import _read_labels
    from cogvideo.weights.checkpoint import read_safetensors
    from cogvideo.weights.published_format import checkpoint_file, read_published

    counts, dice = Counts(), random.Random(4)
    ours, labels, theirs = folder / "x.safetensors", folder / "labels.npy", folder / "1" / "mp_rank_00_model_states.pt"
    theirs.parent.mkdir()
    plain = {"a.weight": torch.arange(12.0).view(3, 4), "b.bias": torch.ones(5, dtype=torch.float16)}
    buffer, numbers = io.BytesIO(), io.BytesIO()
    torch.save({"module": plain}, buffer)
    np.save(numbers, np.arange(64, dtype=np.int16))
    sound = (save(plain), buffer.getvalue(), numbers.getvalue())
    with warnings.catch_warnings(action="ignore"):
        for _ in range(times):
            ours.write_bytes(damaged(sound[0], dice))
            attempt(lambda: read_safetensors(ours), WeightsError, "safetensors", counts)
            theirs.write_bytes(damaged(sound[1], dice))
            attempt(lambda: read_published(folder), WeightsError, "published", counts)
            labels.write_bytes(damaged(sound[2], dice))
            attempt(lambda: _read_labels(labels, 64), WeightsError, "labels", counts)
    (folder / "latest").write_bytes(b"\xff../../etc\0")
    attempt(lambda: checkpoint_file(folder), WeightsError, "latest", counts)
    return counts


def _picture(kind: str) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def _gif(comment: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("P", (8, 8)).save(buffer, "GIF", comment=comment.encode())
    return buffer.getvalue()


def _bomb() -> bytes:
    """A PNG of a few kilobytes that unpacks to 121 million pixels."""
    buffer = io.BytesIO()
    Image.new("1", (11000, 11000)).save(buffer, "PNG")
    return buffer.getvalue()


def _claims_to_be_huge() -> bytes:
    gif = bytearray(_gif("{}"))
    gif[6:10] = b"\xff\xff\xff\xff"
    return bytes(gif)


def _archive(members: dict[str, bytes], method: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as opened:
        for name, content in members.items():
            opened.writestr(name, content)
    return buffer.getvalue()


FAULTS = (
    Fault(
        "pictures",
        "a first frame, or a sentence; bombs, svg and polyglots are refused",
        "起始画面，或一句话；炸弹、svg、混合格式被拒",
        pictures,
        small=60,
        full=10_000,
    ),
    Fault(
        "settings in films",
        "settings, none, or a sentence; a bomb is not unpacked",
        "设置、没有，或一句话；炸弹不解开",
        settings,
        small=60,
        full=5_000,
    ),
    Fault(
        "archives",
        "the checkpoint, or not suitable; nothing outside the folder, no bomb",
        "检查点或“不合适”；文件夹之外不写，炸弹不解开",
        archives,
        small=40,
        full=4_000,
    ),
    Fault(
        "weights and labels",
        "tensors, or a sentence with the file's name",
        "张量，或指出文件名的一句话",
        tensors,
        small=20,
        full=3_000,
    ),
)
