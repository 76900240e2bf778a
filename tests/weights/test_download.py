"""Download: whatever the server does, what arrives is whole and right, or an error says what to do."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import zipfile
from collections import namedtuple
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import torch

from cogvideo.cli import console
from cogvideo.cli.main import main
from cogvideo.config import load_preset
from cogvideo.errors import CapacityError, RequestError, WeightsError
from cogvideo.models.convert import convert
from cogvideo.models.loader import load_published, load_safetensors
from cogvideo.weights.catalog import COGVIDEO, PublishedFile, WeightPaths
from cogvideo.weights.download import Download
from cogvideo.weights.http_download import DownloadPolicy
from cogvideo.weights.progress import Transfer
from tests.support.flaky_server import (
    Fault,
    FlakyServer,
    cut_after,
    flaky_server,
    ignores_ranges,
    says_longer,
    says_shorter,
    silent_after,
    slowly,
    status,
    web_page,
    web_page_in_disguise,
)
from tests.support.toy_text import train_text_model

GOLDEN = Path(__file__).parents[1] / "golden"
ROOT = Path(__file__).resolve().parents[2]
NAME = "cogvideo-stage1"
WEIGHTS = random.Random(0).randbytes(300_000)
HASTE = DownloadPolicy(
    connect_timeout=5.0, read_timeout=5.0, max_retries=3, backoff_factor=0, wait=lambda seconds: None
)


def archive(members: dict[str, bytes] | None = None, prefix: str = "") -> bytes:
    """A checkpoint as it was published, or other members."""
    usual = {
        f"{prefix}{NAME}/latest": b"27000",
        f"{prefix}{NAME}/model_config.json": b"{}",
        f"{prefix}{NAME}/27000/mp_rank_00_model_states.pt": WEIGHTS,
    }
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as packed:
        for name, data in (usual if members is None else members).items():
            packed.writestr(name, data)
    return out.getvalue()


ZIP = archive()


@pytest.fixture
def server() -> Iterator[FlakyServer]:
    with flaky_server() as running:
        running.files["/good.zip"] = ZIP
        yield running


@pytest.fixture
def places(tmp_path: Path) -> WeightPaths:
    return WeightPaths(tmp_path / "sat", tmp_path / "icetk")


def row(server: FlakyServer, *paths: str, data: bytes = ZIP, known: bool = True) -> PublishedFile:
    """A file that can be had at `paths`; `known`: its size and hash were written down."""
    urls = tuple(server.url + path for path in paths)
    known_ = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} if known else {}
    return PublishedFile(f"{NAME}.zip", "zip", urls=urls, **known_)


def starts(server: FlakyServer, path: str) -> list[int]:
    """Where each request began, in order."""
    return [int((wanted or "bytes=0-").removeprefix("bytes=").split("-")[0]) for wanted in server.ranges(path)]


def get(places: WeightPaths, *files: PublishedFile, **options: object) -> None:
    Download(places, files, **({"policy": HASTE, "notify": console.notice} | options)).run()  # type: ignore[arg-type]


def assert_whole(places: WeightPaths) -> None:
    folder = places.sat / NAME
    assert (folder / "27000" / "mp_rank_00_model_states.pt").read_bytes() == WEIGHTS
    assert sorted(path.name for path in folder.iterdir()) == ["27000", "latest", "model_config.json"]
    assert {path.suffix for path in places.work.iterdir() if path.name != "hub"} <= {".lock", ""}


def assert_nothing(places: WeightPaths) -> None:
    assert not (places.sat / NAME).exists()
    assert not list(places.work.glob("*.new"))


# --- connections ----------------------------------------------------------------------------------------------------


def test_a_lost_connection_is_taken_up_where_it_ended(server: FlakyServer, places: WeightPaths) -> None:
    server.faults["/good.zip"] = [cut_after(100_000), cut_after(150_000)]
    get(places, row(server, "/good.zip"))
    assert_whole(places)
    first, second, third = starts(server, "/good.zip")
    assert first == 0
    assert 0 < second <= 100_000 < third


def test_another_call_goes_on_where_the_last_one_gave_up(server: FlakyServer, places: WeightPaths) -> None:
    server.faults["/good.zip"] = [cut_after(200_000), *[status(503)] * 3]
    with pytest.raises(WeightsError, match="503"):
        get(places, row(server, "/good.zip"))
    assert_nothing(places)
    get(places, row(server, "/good.zip"))
    assert_whole(places)
    assert starts(server, "/good.zip")[-1] > 0


@pytest.mark.parametrize("faults", [[cut_after(100_000), ignores_ranges], [ignores_ranges, ignores_ranges]])
def test_a_server_without_ranges_begins_again(server: FlakyServer, places: WeightPaths, faults: list[Fault]) -> None:
    server.faults["/good.zip"] = list(faults)
    get(places, row(server, "/good.zip"))
    assert_whole(places)


def test_a_whole_part_is_not_fetched_again(server: FlakyServer, places: WeightPaths) -> None:
    places.work.mkdir(parents=True)
    (places.work / f"{NAME}.zip.part").write_bytes(ZIP)
    get(places, row(server, "/good.zip"))
    assert_whole(places)
    assert starts(server, "/good.zip") == [len(ZIP)]


def test_a_part_longer_than_the_file_is_thrown_away(server: FlakyServer, places: WeightPaths) -> None:
    places.work.mkdir(parents=True)
    (places.work / f"{NAME}.zip.part").write_bytes(ZIP + b"more")
    get(places, row(server, "/good.zip"))
    assert_whole(places)


def test_a_silent_server_is_asked_again(server: FlakyServer, places: WeightPaths) -> None:
    end = threading.Event()
    server.faults["/good.zip"] = [silent_after(100_000, end)]
    try:
        # On a busy machine a server that answers may be taken for a silent one: it is asked as often as it takes.
        get(places, row(server, "/good.zip"), policy=replace(HASTE, read_timeout=0.2, max_retries=1000))
        assert_whole(places)
    finally:
        end.set()


def test_a_slow_server_is_waited_for(server: FlakyServer, places: WeightPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    limits, ask = [], requests.Session.get

    def listen(session: requests.Session, url: str, **options: Any) -> requests.Response:
        limits.append(options["timeout"])
        return ask(session, url, **options)

    monkeypatch.setattr(requests.Session, "get", listen)
    server.faults["/good.zip"] = [slowly]
    get(places, row(server, "/good.zip"), policy=replace(HASTE, read_timeout=60.0))
    assert_whole(places)
    assert len(server.requests) == 1
    assert limits == [(5.0, 60.0)]  # to connect, and between two pieces; all of it together may take any time


# --- parts that version 0.1 left, with a note of their gaps -----------------------------------------------------------


def test_part_with_gaps_is_resumed_before_its_first_gap(server: FlakyServer, places: WeightPaths) -> None:
    places.work.mkdir(parents=True)
    gapped = ZIP[:90_000] + bytes(40_000) + ZIP[130_000:]
    (places.work / f"{NAME}.zip.part").write_bytes(gapped)
    note = {"total": len(ZIP), "missing": [[90_000, 130_000]]}
    (places.work / f"{NAME}.zip.part.missing").write_text(json.dumps(note))
    get(places, row(server, "/good.zip"))
    assert_whole(places)
    assert starts(server, "/good.zip") == [90_000]


@pytest.mark.parametrize(
    "note", ["{", '{"total": 5}', '{"total": 10, "missing": [[5, 99]]}', '{"total": 1000, "missing": [[500, 1000]]}']
)
def test_part_with_a_wrong_note_is_fetched_again(server: FlakyServer, places: WeightPaths, note: str) -> None:
    places.work.mkdir(parents=True)
    (places.work / f"{NAME}.zip.part").write_bytes(b"?" * 1000)
    (places.work / f"{NAME}.zip.part.missing").write_text(note)
    get(places, row(server, "/good.zip"))
    assert_whole(places)


# --- wrong answers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault, said",
    [
        (web_page, "web page"),
        (web_page_in_disguise, "begins with b'<!DOCTYPE"),
        (says_longer, "bytes instead of"),
        (says_shorter, "bytes instead of"),
        (status(404), "404"),
    ],
)
@pytest.mark.parametrize("other", [True, False], ids=["another address", "the only one"])
def test_wrong_answers_are_told_and_the_next_address_asked(
    server: FlakyServer, places: WeightPaths, capsys: pytest.CaptureFixture[str], fault: object, said: str, other: bool
) -> None:
    server.files["/bad.zip"] = ZIP
    server.faults["/bad.zip"] = [fault] * 9  # type: ignore[list-item]
    if other:
        get(places, row(server, "/bad.zip", "/good.zip"))
        assert_whole(places)
        assert said in capsys.readouterr().err
    else:
        with pytest.raises(WeightsError, match=r"--from") as refusal:
            get(places, row(server, "/bad.zip"))
        assert said in refusal.value.zh
        assert said in refusal.value.en
        assert_nothing(places)


@pytest.mark.parametrize("fault", [says_longer, says_shorter])
def test_a_wrong_size_is_noticed_where_nothing_is_known(
    server: FlakyServer, places: WeightPaths, fault: object
) -> None:
    server.files["/bad.zip"] = ZIP
    server.faults["/bad.zip"] = [fault] * 9  # type: ignore[list-item]
    get(places, row(server, "/bad.zip", "/good.zip", known=False))
    assert_whole(places)


def test_a_wrong_hash_is_noticed(server: FlakyServer, places: WeightPaths) -> None:
    server.files["/bad.zip"] = ZIP.replace(WEIGHTS[:9], b"different")
    get(places, row(server, "/bad.zip", "/good.zip"))
    assert_whole(places)


def test_without_a_hash_the_archive_itself_tells(server: FlakyServer, places: WeightPaths) -> None:
    server.files["/bad.zip"] = ZIP.replace(WEIGHTS[:9], b"different")
    get(places, row(server, "/bad.zip", "/good.zip", known=False))
    assert_whole(places)


def test_what_an_earlier_call_left_is_not_blamed_on_the_address(server: FlakyServer, places: WeightPaths) -> None:
    places.work.mkdir(parents=True)
    (places.work / f"{NAME}.zip.part").write_bytes(b"PK\x03\x04" * 100)
    get(places, row(server, "/good.zip"))
    assert_whole(places)


# --- archives -------------------------------------------------------------------------------------------------------


def test_known_prefixes_are_left_out(server: FlakyServer, places: WeightPaths) -> None:
    server.files["/long.zip"] = data = archive(prefix="sharefs/cogview-new/")
    get(places, row(server, "/long.zip", data=data))
    assert_whole(places)


@pytest.mark.parametrize("name", ["../outside", f"{NAME}/../../outside", "/outside", "C:\\outside", "..\\outside"])
def test_archives_cannot_write_elsewhere(server: FlakyServer, places: WeightPaths, name: str, tmp_path: Path) -> None:
    server.files["/evil.zip"] = data = archive({name: b"!", f"{NAME}/model_config.json": b"{}"})
    with pytest.raises(WeightsError, match="unsafe path"):
        get(places, row(server, "/evil.zip", data=data))
    assert not list(tmp_path.rglob("outside"))
    assert_nothing(places)


def test_links_in_archives_are_refused(server: FlakyServer, places: WeightPaths) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as packed:
        link = zipfile.ZipInfo(f"{NAME}/latest")
        link.external_attr = 0o120777 << 16
        packed.writestr(link, "/etc/passwd")
    server.files["/evil.zip"] = out.getvalue()
    with pytest.raises(WeightsError, match="unsafe path"):
        get(places, row(server, "/evil.zip", data=out.getvalue()))


def test_an_archive_of_something_else_is_named(server: FlakyServer, places: WeightPaths) -> None:
    server.files["/other.zip"] = data = archive({"readme.txt": b"hello"})
    with pytest.raises(WeightsError, match=NAME):
        get(places, row(server, "/other.zip", data=data))
    assert_nothing(places)


# --- Hugging Face, folders, other files -----------------------------------------------------------------------------


def test_hugging_face_comes_first(server: FlakyServer, places: WeightPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    server.files[f"/THUDM/CogVideo/resolve/main/{NAME}.zip"] = ZIP
    get(places, replace(row(server, "/good.zip"), hub=("nobody/nothing", "THUDM/CogVideo")))
    assert_whole(places)
    assert server.ranges("/good.zip") == []
    assert set(server.authorizations) == {"Bearer hf_secret"}
    assert not list(places.work.rglob("*.zip"))


def test_without_hugging_face_the_other_addresses_follow(
    server: FlakyServer, places: WeightPaths, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    get(places, replace(row(server, "/good.zip"), hub=("nobody/nothing",)))
    assert_whole(places)
    assert "Not available from Hugging Face nobody/nothing" in capsys.readouterr().err


def test_a_mirror_that_gives_something_else_is_not_believed(
    server: FlakyServer, places: WeightPaths, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    server.files[f"/page/page/resolve/main/{NAME}.zip"] = b"<!DOCTYPE html>".ljust(len(ZIP))
    server.files[f"/half/half/resolve/main/{NAME}.zip"] = ZIP[: len(ZIP) // 2]
    server.files[f"/other/other/resolve/main/{NAME}.zip"] = ZIP.replace(WEIGHTS[:9], b"different")
    get(places, replace(row(server, "/good.zip"), hub=("page/page", "half/half", "other/other")))
    assert_whole(places)
    err = capsys.readouterr().err
    for said in ("begins with b'<!DOCTYPE", "bytes instead of", "SHA-256"):
        assert said in err


def test_a_mirror_that_is_not_there_is_passed_by(
    server: FlakyServer, places: WeightPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens
    get(places, replace(row(server, "/good.zip"), hub=("THUDM/CogVideo",)))
    assert_whole(places)


@pytest.mark.parametrize("unpacked", [True, False])
def test_what_a_folder_has_is_not_fetched(
    server: FlakyServer, places: WeightPaths, tmp_path: Path, unpacked: bool
) -> None:
    source = tmp_path / "usb"
    source.mkdir()
    if unpacked:
        with zipfile.ZipFile(io.BytesIO(archive(prefix="sharefs/cogview-new/"))) as packed:
            packed.extractall(source)
    else:
        (source / f"{NAME}.zip").write_bytes(ZIP)
    before = {path: path.read_bytes() for path in source.rglob("*") if path.is_file()}
    get(places, row(server, "/good.zip"), source=source)
    assert_whole(places)
    assert server.requests == []
    assert {path: path.read_bytes() for path in source.rglob("*") if path.is_file()} == before


def test_a_damaged_file_in_the_folder_is_left_there_and_fetched(
    server: FlakyServer, places: WeightPaths, tmp_path: Path
) -> None:
    (tmp_path / f"{NAME}.zip").write_bytes(ZIP[:-100])
    get(places, row(server, "/good.zip"), source=tmp_path)
    assert_whole(places)
    assert (tmp_path / f"{NAME}.zip").read_bytes() == ZIP[:-100]


def test_icetks_files_and_the_clusters_get_the_same_care(
    server: FlakyServer, places: WeightPaths, tmp_path: Path
) -> None:
    labels = io.BytesIO()
    np.save(labels, np.arange(20000))
    server.files["/labels"] = labels.getvalue()
    server.files["/text"] = train_text_model(tmp_path).read_bytes()
    server.files["/image"] = image_weights(tmp_path)
    server.faults["/text"] = [cut_after(70_000)]
    server.faults["/image"] = [cut_after(70_000), cut_after(140_000)]
    get(
        places,
        PublishedFile("cluster_label2.npy", "npy", urls=(server.url + "/labels",), size=160_128),
        PublishedFile("ice_text.model", "sentencepiece", urls=(server.url + "/text",), icetk=True),
        PublishedFile("ice_image.pt", "torch", urls=(server.url + "/image",), icetk=True),
    )
    assert np.array_equal(np.load(places.sat / "cluster_label2.npy"), np.arange(20000))
    for name in ("text", "image"):
        first, second, *_ = starts(server, f"/{name}")
        assert first == 0 < second
    assert (places.icetk / "ice_text.model").read_bytes() == server.files["/text"]
    assert (places.icetk / "ice_image.pt").read_bytes() == server.files["/image"]


@pytest.mark.parametrize(
    "spoil", [lambda data: data[: len(data) // 2], lambda data: data.replace(b"\xaa" * 9, b"\xbb" * 9)]
)
def test_without_size_or_hash_small_files_are_read_before_they_are_taken(
    server: FlakyServer, places: WeightPaths, tmp_path: Path, spoil: Callable[[bytes], bytes]
) -> None:
    text, image = train_text_model(tmp_path).read_bytes(), image_weights(tmp_path)
    server.files["/bad"] = spoil(image)
    server.files["/bad-text"] = text[: len(text) // 2]
    server.files["/good"], server.files["/good-text"] = image, text
    assert server.files["/bad"] != image
    urls = [tuple(f"{server.url}/{word}{kind}" for word in ("bad", "good")) for kind in ("", "-text")]
    get(
        places,
        PublishedFile("ice_image.pt", "torch", urls=urls[0], icetk=True),
        PublishedFile("ice_text.model", "sentencepiece", urls=urls[1], icetk=True),
    )
    assert (places.icetk / "ice_image.pt").read_bytes() == image
    assert (places.icetk / "ice_text.model").read_bytes() == text


def image_weights(folder: Path) -> bytes:
    torch.save({"module": {"weight": torch.full((300_000,), 0xAA, dtype=torch.uint8)}}, folder / "image.pt")
    return (folder / "image.pt").read_bytes()


def test_an_archive_put_where_the_model_goes_is_unpacked_there(server: FlakyServer, places: WeightPaths) -> None:
    places.sat.mkdir()
    (places.sat / f"{NAME}.zip").write_bytes(ZIP)
    get(places, row(server, "/good.zip"))
    assert_whole(places)
    assert server.requests == []


# --- the machine ----------------------------------------------------------------------------------------------------


def test_disk_space_is_asked_before(server: FlakyServer, places: WeightPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 0, 40 * 10**9))
    files = [replace(file, hub=(), urls=(server.url + "/good.zip",)) for file in COGVIDEO]
    with pytest.raises(CapacityError, match=r"40\.0 GB free, but 58\.8 GB are required.*SAT_HOME"):
        get(places, *files)
    assert server.requests == []


def test_a_disk_that_fills_up_is_named(
    server: FlakyServer, places: WeightPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cogvideo.weights.download.unpack", full)
    with pytest.raises(CapacityError, match="No space left"):
        get(places, row(server, "/good.zip"))
    assert_nothing(places)


def test_two_processes_fetch_a_file_once(server: FlakyServer, places: WeightPaths) -> None:
    code = """
import sys
from pathlib import Path
from cogvideo.weights.download import Download
from cogvideo.weights.catalog import PublishedFile, WeightPaths
file = PublishedFile(sys.argv[2], "zip", urls=(sys.argv[3],))
Download(WeightPaths(Path(sys.argv[1]), Path(sys.argv[1])), (file,), notify=print).run()
"""
    words = [sys.executable, "-c", code, str(places.sat), f"{NAME}.zip", server.url + "/good.zip"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    both = [subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in both:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    assert_whole(places)
    assert len(server.requests) == 1


def test_what_is_there_is_neither_fetched_nor_overwritten(server: FlakyServer, places: WeightPaths) -> None:
    get(places, row(server, "/good.zip"))
    get(places, row(server, "/good.zip"))
    assert len(server.requests) == 1
    (places.sat / NAME / "model_config.json").unlink()
    with pytest.raises(WeightsError, match="incomplete"):
        get(places, row(server, "/good.zip"))
    assert len(server.requests) == 1


def test_the_licence_is_shown_once(
    server: FlakyServer, places: WeightPaths, capsys: pytest.CaptureFixture[str]
) -> None:
    get(places, row(server, "/good.zip"))
    assert capsys.readouterr().err.count("The CogVideo License") == 2  # once in each language
    shutil.rmtree(places.sat / NAME)
    get(places, row(server, "/good.zip"))
    assert "The CogVideo License" not in capsys.readouterr().err


def test_a_log_and_a_listener_hear_how_far_it_is(
    server: FlakyServer, places: WeightPaths, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    get(places, row(server, "/good.zip"))
    assert f"{NAME}.zip: 100%" in capsys.readouterr().err
    shutil.rmtree(places.sat / NAME)
    heard: list[Transfer] = []
    get(places, row(server, "/good.zip"), report=heard.append)
    assert "%" not in capsys.readouterr().err
    (last,) = [transfer for transfer in heard if transfer.name == f"{NAME}.zip"][-1:]
    assert (last.done, last.total) == (len(ZIP), len(ZIP))
    shutil.rmtree(places.sat / NAME)
    heard.clear()
    monkeypatch.setattr("tqdm.std.time", itertools.count().__next__)  # a second later each time it is asked
    get(places, row(server, "/good.zip"), report=heard.append)
    assert any(transfer.seconds_left for transfer in heard if 0 < transfer.done < len(ZIP))


def test_a_source_that_is_no_folder_is_refused(places: WeightPaths) -> None:
    with pytest.raises(RequestError, match="nowhere"):
        get(places, *COGVIDEO, source=Path("nowhere"))


def test_the_command_takes_everything_from_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, home = tmp_path / "usb", tmp_path / "home"
    shutil.copytree(GOLDEN, source)
    np.save(source / "cluster_label2.npy", np.arange(20000))
    train_text_model(source).rename(source / "ice_text.model")
    (source / "ice_image.pt").write_bytes(image_weights(tmp_path))
    labels = (source / "cluster_label2.npy").read_bytes()
    files = [replace(file, hub=(), urls=()) for file in COGVIDEO]
    files[3] = replace(files[3], size=len(labels), sha256=hashlib.sha256(labels).hexdigest())
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 0, 10**12))
    monkeypatch.setattr("cogvideo.cli.download.COGVIDEO", tuple(files))
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("SAT_HOME", str(home / "sat"))
    assert main(["download", "cogvideo", "--from", str(source)]) == 0
    assert str(home / "sat") in capsys.readouterr().out
    assert WeightPaths.usual().missing() == []
    config = json.loads((home / "sat" / NAME / "model_config.json").read_text())
    assert config["num_layers"] == 4
    assert main(["download", "mini"]) == 0


def test_from_a_server_that_hangs_up_twice_to_networks(
    server: FlakyServer, places: WeightPaths, tmp_path: Path
) -> None:
    files = []
    for name in ("cogvideo-stage1", "cogvideo-stage2", "cogview2-dsr"):
        packed = shutil.make_archive(str(tmp_path / name), "zip", GOLDEN, name)
        server.files[f"/{name}"] = data = Path(packed).read_bytes()
        server.faults[f"/{name}"] = [cut_after(len(data) // 3), cut_after(len(data) // 3)]
        known = hashlib.sha256(data).hexdigest()
        files.append(PublishedFile(f"{name}.zip", "zip", urls=(f"{server.url}/{name}",), size=len(data), sha256=known))
    get(places, *files)
    convert(places.sat, tmp_path / "converted")
    preset, folder = load_preset(str(tmp_path / "converted"))
    wanted, got = load_published(GOLDEN), load_safetensors(folder, preset.model)
    for part, network in wanted.networks.items():
        tensors = got.networks[part].state_dict()
        assert all(torch.equal(tensor, tensors[name]) for name, tensor in network.state_dict().items())
    assert all(len(server.ranges(f"/{file.installed}")) == 3 for file in files)
