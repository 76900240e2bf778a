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
from cogvideo.jobs.follow_ups import changed
from cogvideo.jobs.service import JobService, new_key
from cogvideo.request import VideoRequest
from cogvideo.runtime.memory_estimate import peak_bytes
from cogvideo.runtime.memory_presets import MEMORY_PRESETS
from cogvideo.web import server as server_module
from cogvideo.web import server as web_server
from cogvideo.web import spaces
from cogvideo.web.form import Form
from cogvideo.web.model_options import Held, large, memory_choices
from cogvideo.web.routes import routes
from cogvideo.web.strings import FOLDER, LANGUAGES, Strings, outcome, preferred_language
from tests.support.fakes import PRESET, FakePipeline

WORDS = Strings.load()
BASE = PRESET.sampling
USUAL = Form.default(PRESET)
ROOT = Path(__file__).resolve().parents[2]


def names(sentence: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(sentence) if name}


def test_every_sentence_exists_in_both_languages() -> None:
    for key, (zh, en) in WORDS.pairs.items():
        assert zh.strip() and en.strip(), key
        assert names(zh) == names(en), key
        assert re.search("[\u4e00-\u9fff]", zh) or key == "download_gif", key


def test_every_key_that_is_used_exists() -> None:
    files = (ROOT / "cogvideo" / "web").glob("*.py")
    python = "".join(path.read_text("utf-8") for path in files)
    used = set(re.findall(r'(?:\.text|say|label)\((?:self\.words, )?(?:language, |"zh", )?["\'](\w+)["\']', python))
    used |= set(re.findall(r'zh\["(\w+)"\]', python))
    for path in FOLDER.iterdir():
        if path.suffix in (".js", ".html"):
            text = path.read_text("utf-8")
            used |= set(re.findall(r'(?:cv\.say|picture)\((?:value\.\w+, )?"(\w+)"', text)) | set(
                re.findall(r'data-word="(\w+)"', text)
            )
    assert len(used) > 60
    assert used - {"zh"} <= set(WORDS.pairs)


def test_phrases_and_examples_have_a_gloss() -> None:
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
def test_the_browser_chooses_the_language(accepted: str | None, language: str) -> None:
    assert preferred_language(accepted) == language


@pytest.mark.parametrize("language", LANGUAGES)
def test_what_comes_of_the_settings_is_said(language: str) -> None:
    for frames in FRAME_COUNTS:
        said = outcome(WORDS, language, frames, 0.5, 100.0)
        assert "0.5" in said and "2" in said and "{" not in said


forms = st.builds(
    Form,
    prompt=st.text(max_size=40),
    seed=st.integers(0, MAX_SEED),
    frames=st.sampled_from(FRAME_COUNTS),
    seconds=st.sampled_from(DURATIONS),
    guidance=st.sampled_from([1.0, 3.0, 4.5, 10.0]),
    temperature=st.sampled_from([0.5, 0.95, 1.0, 1.5]),
    top_k=st.sampled_from([6, 12, 24]),
    superres=st.booleans(),
    between=st.none() | st.integers(0, MAX_SEED),
)


@given(forms)
def test_a_form_survives_request_and_link(form: Form) -> None:
    request = form.request(BASE)
    assert Form.of(request, BASE) == form
    link = {
        "p": form.prompt,
        "s": str(form.seed),
        "f": str(form.num_frames),
        "d": f"{form.duration:g}",
        **form.query(USUAL),
    }
    assert Form.from_query(dict(parse_qsl(urlencode(link), keep_blank_values=True)), USUAL) == form


def test_the_usual_settings_are_the_presets_own() -> None:
    assert replace(USUAL, prompt="一", seed=7).request(BASE) == VideoRequest("一", 7)
    assert Form.default(PRESETS["mini"]).superres is PRESETS["mini"].upscale_by_default


def test_nonsense_in_a_link_is_refused_with_a_sentence() -> None:
    assert Form.from_query({"job": "x"}, USUAL) is None
    for query in ({"p": "一", "s": "x"}, {"p": "一", "f": "<b>"}, {"p": "一", "d": "1e"}):
        with pytest.raises(RequestError):
            Form.from_query(query, USUAL)
    with pytest.raises(RequestError):
        Form("一", None).request(BASE)


@pytest.mark.parametrize("kind", ["cuda", "cpu"])
def test_memory_presets_are_named_with_their_expected_peaks(kind: str) -> None:
    model = PRESETS["cogvideo"].model
    assert large(model) and not large(PRESETS["mini"].model)
    (usual, nothing), *others = memory_choices(WORDS, "en", Held(model, kind, "16g"))
    peaks = {name: peak_bytes(model, MEMORY_PRESETS[name], kind) / 1e9 for name in MEMORY_PRESETS}
    assert nothing == "" and "16g" in usual and f"{peaks['16g']:.1f} GB" in usual
    names = {name for _, name in others}
    assert names == {row.name for row in MEMORY_PRESETS.values() if kind in ("cpu", row.device)}
    assert all(f"{peaks[name]:.1f} GB" in said for said, name in others)


def test_changes_of_a_finished_job() -> None:
    request = VideoRequest("一", MAX_SEED, 9, superres=False)
    assert changed(request, "next").seed == 0
    assert changed(request, "finer").num_frames == 17
    assert changed(request, "enlarge").superres
    assert changed(request, "again") == changed(request, "resume") == request
    assert changed(request, "between").interpolation_seed is not None
    with pytest.raises(RequestError, match="there are again"):
        changed(request, "nonsense")


def test_a_downloaded_file_gives_its_settings_back(tmp_path: Path) -> None:
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


def test_a_file_that_is_deleted_while_it_is_asked_for_is_not_found(
    jobs: JobService, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "here.mp4").write_bytes(b"film")
    monkeypatch.setattr(jobs, "file", lambda job, name: tmp_path / name)  # found, and deleted before it is sent
    with TestClient(Starlette(routes=routes(jobs))) as client:
        assert client.get("/media/job/gone.mp4").status_code == 404
        assert client.get("/media/job/here.mp4").content == b"film"


def test_links_of_a_space_lead_to_its_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPACE_ID", raising=False)
    assert spaces.share_base() == ""
    monkeypatch.setenv("SPACE_ID", "somebody/cogvideo")
    assert spaces.share_base() == "https://huggingface.co/spaces/somebody/cogvideo"
    assert serve.parser().parse_args([]).host == "0.0.0.0"


def test_a_taken_port_is_said_and_the_next_one_found_when_asked() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(CapacityError, match=f"Port {port}"):
            server_module.free_port("127.0.0.1", port, search=False)
        assert server_module.free_port("127.0.0.1", port, search=True) > port


def test_the_data_folder_can_be_chosen_and_a_bad_one_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COGVIDEO_DATA", str(tmp_path / "there"))
    assert server_module.data_folder(None) == tmp_path / "there"
    (tmp_path / "file").write_text("")
    with pytest.raises(CapacityError, match="cannot be used"):
        server_module.data_folder(tmp_path / "file")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    jobs = JobService(tmp_path_factory.mktemp("data"), PRESET, lambda: FakePipeline(free=True))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ui = web_server.serve(jobs, "127.0.0.1", port)
    jobs.start()
    yield f"http://127.0.0.1:{port}/"
    ui.close()
    jobs.close()


def test_programs_use_the_same_jobs(server: str, tmp_path: Path) -> None:
    from examples.api import make

    video = make(server, "一只熊猫在草地上向右跑", tmp_path / "panda.mp4", seed=7, frames=5)
    assert video["status"] == "done"
    found = read_settings(tmp_path / "panda.mp4")
    assert found and found[0].seed == 7


def test_programs_may_ask_in_two_requests_or_in_one(server: str) -> None:
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


def test_the_api_has_its_endpoints_and_says_what_is_wrong(server: str) -> None:
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
    with pytest.raises(AppError, match="Only the person"):
        client.predict(job["id"], new_key(), api_name="/delete_video")
