"""What the page is made of, without a browser: its words, its form and its links."""

from __future__ import annotations

import json
import re
import socket
import string
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qsl, urlencode

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.testclient import TestClient

from cogvideo.cli import serve
from cogvideo.config import DURATIONS, FRAME_COUNTS, MAX_SEED, PRESETS
from cogvideo.errors import CapacityError, RequestError
from cogvideo.jobs.artifacts import read_settings
from cogvideo.jobs.follow_ups import FollowUp, follow_up_request
from cogvideo.jobs.service import JobService, new_key
from cogvideo.request import VideoRequest
from cogvideo.runtime.memory_estimate import peak_bytes
from cogvideo.runtime.memory_presets import MEMORY_PRESETS
from cogvideo.web import server as server_module
from cogvideo.web import server as web_server
from cogvideo.web import spaces
from cogvideo.web.form import Form
from cogvideo.web.model_options import ModelPlacement, has_memory_choice, memory_choices
from cogvideo.web.routes import routes
from cogvideo.web.strings import FOLDER, LANGUAGES, Strings, outcome_text, preferred_language
from tests.support.fakes import PRESET, FakePipeline
from tests.support.ports import free_port

WORDS = Strings.load()
BASE = PRESET.sampling
USUAL = Form.default(PRESET)
ROOT = Path(__file__).resolve().parents[2]


def names(sentence: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(sentence) if name}


def test_every_string_exists_in_both_languages() -> None:
    for key, (zh, en) in WORDS.pairs.items():
        assert zh.strip() and en.strip(), key
        assert names(zh) == names(en), key
        assert re.search("[\u4e00-\u9fff]", zh) or key == "download_gif", key


def test_every_used_string_key_exists() -> None:
    python = "".join(path.read_text("utf-8") for path in (ROOT / "cogvideo" / "web").glob("*.py"))
    used = set(re.findall(r'(?:text|notice|_label)\((?:[\w.]*language|"zh"), ["\'](\w+)["\']', python))
    used |= set(re.findall(r'zh\["(\w+)"\]', python))
    used |= {key for keys in re.findall(r'c\.\w+: \("(\w+)",(?: "(\w+)")?\)', python) for key in keys if key}
    for path in FOLDER.iterdir():
        if path.suffix in (".js", ".html"):
            text = path.read_text("utf-8")
            used |= set(re.findall(r'(?:cv\.say|picture)\((?:value\.\w+, )?"(\w+)"', text)) | set(
                re.findall(r'data-word="(\w+)"', text)
            )
    assert len(used) > 100
    assert used <= set(WORDS.pairs)


def test_phrases_and_examples_have_english_glosses() -> None:
    examples = json.loads((FOLDER / "examples.json").read_text("utf-8"))
    bank = json.loads((FOLDER / "phrases.json").read_text("utf-8"))
    for zh, en in [*examples, *(pair for _, phrases in bank for pair in phrases), *(title for title, _ in bank)]:
        assert re.search("[\u4e00-\u9fff]", zh) and en.isascii()
    assert {title[0] for title, _ in bank} >= {"新闻", "电影和游戏预览", "教育", "建筑", "虚拟现实", "营销", "个性化"}


@pytest.mark.parametrize(
    ("accepted", "language"),
    [
        ("zh", "zh"),
        ("zh-HK,en;q=0.8", "zh"),
        ("zh-Hans-CN", "zh"),
        ("en-US,zh;q=0.5", "en"),
        ("de", "en"),
        (None, "zh"),
    ],
)
def test_language_follows_accept_language_header(accepted: str | None, language: str) -> None:
    assert preferred_language(accepted) == language


@pytest.mark.parametrize("language", LANGUAGES)
def test_outcome_text_names_length_and_time(language: str) -> None:
    for frames in FRAME_COUNTS:
        said = outcome_text(WORDS, language, frames, 0.5, 100.0)
        assert "0.5" in said and "2" in said and "{" not in said


forms = st.builds(
    Form,
    prompt=st.text(max_size=40),
    seed=st.integers(0, MAX_SEED),
    num_frames=st.sampled_from(FRAME_COUNTS),
    duration=st.sampled_from(DURATIONS),
    guidance_scale=st.sampled_from([1.0, 3.0, 4.5, 10.0]),
    temperature=st.sampled_from([0.5, 0.95, 1.0, 1.5]),
    top_k=st.sampled_from([6, 12, 24]),
    superres=st.booleans(),
    interpolation_seed=st.none() | st.integers(0, MAX_SEED),
)


@given(forms)
def test_form_round_trips_through_request_and_link(form: Form) -> None:
    request = form.request(BASE)
    assert Form.from_request(request, BASE) == form
    link = {
        "p": form.prompt,
        "s": str(form.seed),
        "f": str(form.num_frames),
        "d": f"{form.duration:g}",
        **form.query(USUAL),
    }
    assert Form.from_query(dict(parse_qsl(urlencode(link), keep_blank_values=True)), USUAL) == form


def test_default_form_gives_default_request() -> None:
    assert replace(USUAL, prompt="一", seed=7).request(BASE) == VideoRequest("一", 7)
    assert Form.default(PRESETS["mini"]).superres is PRESETS["mini"].upscale_by_default


def test_link_with_invalid_numbers_is_refused() -> None:
    assert Form.from_query({"job": "x"}, USUAL) is None
    for query in ({"p": "一", "s": "x"}, {"p": "一", "f": "<b>"}, {"p": "一", "d": "1e"}):
        with pytest.raises(RequestError):
            Form.from_query(query, USUAL)
    with pytest.raises(RequestError):
        Form("一", None).request(BASE)


@pytest.mark.parametrize("kind", ["cuda", "cpu"])
def test_memory_choices_show_expected_peaks(kind: str) -> None:
    model = PRESETS["cogvideo"].model
    assert has_memory_choice(model) and not has_memory_choice(PRESETS["mini"].model)
    (usual, nothing), *others = memory_choices(WORDS, "en", ModelPlacement(model, kind, "16g"))
    peaks = {name: peak_bytes(model, MEMORY_PRESETS[name], kind) / 1e9 for name in MEMORY_PRESETS}
    assert nothing == "" and "16g" in usual and f"{peaks['16g']:.1f} GB" in usual
    names = {name for _, name in others}
    assert names == {row.name for row in MEMORY_PRESETS.values() if kind in ("cpu", row.device)}
    assert all(f"{peaks[name]:.1f} GB" in said for said, name in others)


def test_follow_up_request_applies_one_change() -> None:
    request = VideoRequest("一", MAX_SEED, 9, superres=False)
    assert follow_up_request(request, FollowUp.NEXT_SEED).seed == 0
    assert follow_up_request(request, FollowUp.ADD_FRAMES).num_frames == 17
    assert follow_up_request(request, FollowUp.UPSCALE).superres
    assert follow_up_request(request, FollowUp.REPEAT) == follow_up_request(request, FollowUp.RESUME) == request
    assert follow_up_request(request, FollowUp.RESAMPLE_INTERPOLATION).interpolation_seed is not None
    with pytest.raises(RequestError, match="Allowed: finer, between"):
        FollowUp.parse("nonsense")


def test_downloaded_file_contains_settings(tmp_path: Path) -> None:
    jobs = JobService(tmp_path / "data", PRESET, lambda: FakePipeline(free=True))
    jobs.start()
    request = Form("熊猫", 9, 5, 2.0, 4.0, superres=False).request(BASE)
    jobs.submit(request, "k" * 20)
    while (view := jobs.history("k" * 20)[0]).active:
        pass
    path = jobs.file(view.id, "final.mp4")
    assert path and read_settings(path) == (request, PRESET.name)
    jobs.close()
    for text in ("", "no video", '{"prompt": 3}'):
        (tmp_path / "other.mp4").write_text(text)
        assert read_settings(tmp_path / "other.mp4") is None


def test_file_deleted_during_request_gives_404(
    jobs: JobService, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "here.mp4").write_bytes(b"film")
    monkeypatch.setattr(jobs, "file", lambda job, name: tmp_path / name)  # found, and deleted before it is sent
    with TestClient(Starlette(routes=routes(jobs))) as client:
        assert client.get("/media/job/gone.mp4").status_code == 404
        assert client.get("/media/job/here.mp4").content == b"film"


def test_share_base_on_space_is_its_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPACE_ID", raising=False)
    assert spaces.share_base() == ""
    monkeypatch.setenv("SPACE_ID", "somebody/cogvideo")
    assert spaces.share_base() == "https://huggingface.co/spaces/somebody/cogvideo"
    assert serve.parser().parse_args([]).host == "0.0.0.0"


def test_used_port_is_refused_or_next_one_found() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(CapacityError, match=f"Port {port}"):
            server_module.free_port("127.0.0.1", port, search=False)
        assert server_module.free_port("127.0.0.1", port, search=True) > port


def test_data_folder_follows_environment_and_refuses_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COGVIDEO_DATA", str(tmp_path / "there"))
    assert server_module.data_folder(None) == tmp_path / "there"
    (tmp_path / "file").write_text("")
    with pytest.raises(CapacityError, match="cannot be used"):
        server_module.data_folder(tmp_path / "file")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    jobs = JobService(tmp_path_factory.mktemp("data"), PRESET, lambda: FakePipeline(free=True))
    port = free_port()
    ui = web_server.serve(jobs, "127.0.0.1", port)
    jobs.start()
    yield f"http://127.0.0.1:{port}/"
    ui.close()
    jobs.close()


def test_example_client_makes_video(server: str, tmp_path: Path) -> None:
    from examples.api import make

    video = make(server, "一只熊猫在草地上向右跑", tmp_path / "panda.mp4", seed=7, frames=5)
    assert video["status"] == "done"
    found = read_settings(tmp_path / "panda.mp4")
    assert found and found[0].seed == 7


def test_endpoint_answers_queued_and_direct_calls(server: str) -> None:
    call = f"{server}gradio_api/call/make_video"
    event = httpx.post(call, json={"data": ["熊猫", 7, 5, 4, True, 3, ""]}).json()["event_id"]
    answer = httpx.get(f"{call}/{event}", timeout=60).text.splitlines()
    assert answer[0] == "event: complete"
    assert json.loads(answer[1].removeprefix("data: "))[0]["seed"] == 7
    for way in ("run/make_video", "api/make_video", "run/make_video/"):
        said = httpx.post(f"{server}gradio_api/{way}", json={"data": ["熊猫", 8]}, timeout=60)
        assert (said.status_code, said.json()["data"][0]["seed"]) == (200, 8)
        said = httpx.post(f"{server}gradio_api/{way}", json={"data": ["熊猫", "8"]}, timeout=60)
        assert said.status_code == 422 and "seed" in said.json()["error"]


def test_api_lists_endpoints_and_reports_errors(server: str) -> None:
    from gradio_client import Client
    from gradio_client.exceptions import AppError

    client = Client(server, verbose=False)
    api = client.view_api(return_format="dict", print_info=False)
    names = "make_video draft_video video stop_video delete_video continue_video change_video"
    assert set(api["named_endpoints"]) == {f"/{name}" for name in names.split()}
    assert api["unnamed_endpoints"] == {}
    for arguments, endpoint, sentence in (
        (["a panda"], "/make_video", "Chinese"),
        (["熊猫", -2], "/make_video", "out of range"),
        (["../../jobs.sqlite"], "/video", "no such video"),
    ):
        with pytest.raises(AppError, match=sentence):
            client.predict(*arguments, api_name=endpoint)
    job = client.predict("熊猫", api_name="/make_video")
    with pytest.raises(AppError, match="Only the user"):
        client.predict(job["id"], new_key(), api_name="/delete_video")
