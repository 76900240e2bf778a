"""The folder of the Space: what is in it, which folders it may replace; and its upload, to a hub without a network."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from unittest.mock import create_autospec

import httpx2
import pytest
import yaml
from huggingface_hub import HfApi, SpaceCard, SpaceHardware

from cogvideo.errors import CogVideoError, RequestError
from tests.support.fake_hub import HEAD, FakeHub

ROOT = Path(__file__).resolve().parents[2]
NAME = "owner/film"
CONTENT = {
    "app.py": "import cogvideo",
    "requirements.txt": "# gradio==1.0\ngradio==9.8.7\ngradio_client>=1\n",
    "LICENSE": "licence",
    "NOTICE": "notice",
    "cogvideo/__init__.py": "",
    "cogvideo/deep/part.py": "x = 1",
    "kernels/step.c": "int x;",
    "assets/mini/model.safetensors": "weights",
    "assets/web/page.js": "page",
    "examples/gallery/panda.mp4": "panda",
}
"""What is to be in the Space of `project`, besides what the script writes."""
OTHERS = (
    *("cogvideo/__pycache__/part.pyc", "cogvideo/old.pyc", "cogvideo/.hidden", "assets/bench/cpu.json"),
    *("assets/readme/panda.gif", "examples/batch.csv", "tests/test_x.py", "docs/x.md", ".ci/run", "README.md"),
)
WRITTEN = {"README.md", "packages.txt", ".gitignore"}


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", [str(ROOT / "scripts"), *sys.path])
    return import_module("build_space")


@pytest.fixture
def uploading(script: ModuleType) -> ModuleType:
    return sys.modules[script.publish.__module__]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A small project that is no git checkout."""
    folder = tmp_path / "project"
    for path, text in {**CONTENT, **dict.fromkeys(OTHERS, "other")}.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    (folder / "pyproject.toml").write_text('[project]\nname = "films"\nrequires-python = ">=3.12,<3.15"\n')
    return folder


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def build(script: ModuleType, project: Path, output: Path) -> list[str]:
    return list(script.build(project, output, script.space_card(project), script.space_files(project)[0]))


# --- what is in it --------------------------------------------------------------------------------------------------


def test_space_contains_what_runs_and_nothing_else(script: ModuleType, project: Path, tmp_path: Path) -> None:
    built = build(script, project, tmp_path / "space")
    assert set(built) == {*CONTENT, *WRITTEN}
    assert files_of(tmp_path / "space") == {*CONTENT, *WRITTEN, script.MARKER}
    assert {path: (tmp_path / "space" / path).read_text() for path in CONTENT} == CONTENT


def test_space_of_this_project_has_no_tests_documents_or_ci(script: ModuleType) -> None:
    files, _ = script.space_files(ROOT)
    assert {path.split("/")[0] for path in files} == {*script.FILES, "assets", "cogvideo", "examples", "kernels"}
    assert {path for path in files if path.startswith("examples/")} == {
        f"examples/gallery/{path.name}" for path in (ROOT / "examples" / "gallery").iterdir()
    }
    assert {f"assets/mini/{path.name}" for path in (ROOT / "assets" / "mini").iterdir()} <= set(files)
    assert not [path for path in files if "__pycache__" in path or path.startswith(script.LEFT_OUT)]


def test_untracked_files_of_a_checkout_are_left_out_and_listed(script: ModuleType, project: Path) -> None:
    (project / ".gitignore").write_text("__pycache__/\n*.pyc\n")
    for words in (["init", "--quiet"], ["add", "."]):
        subprocess.run(["git", "-C", str(project), *words], check=True)
    (project / "cogvideo" / "private.txt").write_text("secret")
    (project / "docs" / "private.txt").write_text("secret")
    files, left_out = script.space_files(project)
    assert left_out == ["cogvideo/private.txt"]
    assert set(files) == {*CONTENT, "cogvideo/.hidden"}


def test_checkout_whose_files_git_cannot_list_is_refused(script: ModuleType, project: Path) -> None:
    (project / ".git").write_text("gitdir: nowhere\n")
    with pytest.raises(RequestError, match="git cannot list the files"):
        script.space_files(project)


@pytest.mark.parametrize("name", ["LICENSE", "assets/mini/model.safetensors"])
def test_pointer_of_git_lfs_is_refused(script: ModuleType, project: Path, name: str) -> None:
    (project / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(RequestError, match=name):
        script.space_files(project)


def test_missing_files_and_folders_are_refused(script: ModuleType, project: Path) -> None:
    (project / "NOTICE").unlink()
    shutil.rmtree(project / "kernels")
    with pytest.raises(RequestError, match="2 files, such as NOTICE, kernels/"):
        script.space_files(project)


# --- its metadata ---------------------------------------------------------------------------------------------------


def test_versions_of_the_card_are_those_of_the_project(script: ModuleType, project: Path) -> None:
    card = SpaceCard(script.space_card(project)).data
    assert (card.sdk, card.sdk_version, card.python_version) == ("gradio", "9.8.7", "3.12")


def test_keys_of_the_card_are_in_the_declared_order(script: ModuleType) -> None:
    head = script.space_card(ROOT).split("---\n")[1]
    assert list(yaml.safe_load(head)) == list(script.METADATA)


def test_hardware_of_the_card_is_the_chosen_one(script: ModuleType) -> None:
    assert SpaceCard(script.space_card(ROOT)).data["suggested_hardware"] == "cpu-basic"
    assert SpaceCard(script.space_card(ROOT, "t4-small")).data["suggested_hardware"] == "t4-small"
    assert {"cpu-basic", "zero-a10g"} <= {hardware.value for hardware in SpaceHardware}


def test_card_links_to_the_project_if_its_address_is_given(script: ModuleType, project: Path) -> None:
    assert "Project: films\n" in script.space_card(project)
    assert "[films](https://a.example/x)" in script.space_card(project, url="https://a.example/x")
    with (project / "pyproject.toml").open("a") as file:
        file.write('[project.urls]\nRepository = "https://a.example/films"\n')
    assert "[films](https://a.example/films)" in script.space_card(project)


@pytest.mark.parametrize("requirements", ["torch==2\n", "gradio>=6\n"])
def test_unpinned_gradio_is_refused(script: ModuleType, project: Path, requirements: str) -> None:
    (project / "requirements.txt").write_text(requirements)
    with pytest.raises(RequestError, match="gradio==VERSION"):
        script.space_card(project)


def test_python_without_a_lower_bound_is_refused(script: ModuleType, project: Path) -> None:
    (project / "pyproject.toml").write_text('[project]\nname = "films"\nrequires-python = "<4"\n')
    with pytest.raises(RequestError, match="no lower bound"):
        script.space_card(project)


# --- the folder it is written to ------------------------------------------------------------------------------------


def test_earlier_build_is_replaced_whole(script: ModuleType, project: Path, tmp_path: Path) -> None:
    output = tmp_path / "deep" / "space"
    output.mkdir(parents=True)  # an empty folder is taken
    build(script, project, output)
    (output / "cogvideo" / "__pycache__").mkdir()
    (output / "cogvideo" / "__pycache__" / "part.pyc").touch()  # left by running the page in it
    (project / "kernels" / "step.c").rename(project / "kernels" / "new.c")
    build(script, project, output)
    assert files_of(output) == {*CONTENT, *WRITTEN, script.MARKER, "kernels/new.c"} - {"kernels/step.c"}
    assert [path.name for path in output.parent.iterdir()] == ["space"]


@pytest.mark.parametrize(
    ("built", "extra"), [(False, "mine.txt"), (False, "empty/"), (True, "data/film.mp4"), (True, ".git/HEAD")]
)
def test_folder_with_other_content_is_refused_and_untouched(
    script: ModuleType, project: Path, tmp_path: Path, built: bool, extra: str
) -> None:
    output = tmp_path / "space"
    if built:
        build(script, project, output)
    (output / extra).parent.mkdir(parents=True, exist_ok=True)
    if extra.endswith("/"):
        (output / extra).mkdir()
    else:
        (output / extra).write_text("mine")
    before = files_of(output)
    with pytest.raises(RequestError, match=extra.rstrip("/")):
        build(script, project, output)
    assert (output / extra).exists() and files_of(output) == before


def test_file_in_place_of_the_folder_is_refused(script: ModuleType, project: Path, tmp_path: Path) -> None:
    (tmp_path / "space").write_text("mine")
    with pytest.raises(RequestError, match="--output"):
        build(script, project, tmp_path / "space")
    assert (tmp_path / "space").read_text() == "mine"


def test_output_inside_what_is_copied_is_refused(script: ModuleType, project: Path) -> None:
    with pytest.raises(RequestError, match="inside a folder that is copied"):
        build(script, project, project / "assets" / "space")
    assert not (project / "assets" / "space").exists()


@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize("broken", ["copy", "rename"])
def test_interrupted_build_leaves_what_was_there(
    script: ModuleType, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str, earlier: bool
) -> None:
    output = tmp_path / "space"
    if earlier:
        build(script, project, output)
        (project / "app.py").write_text("changed")
    real = {"copy": shutil.copy, "rename": Path.rename}[broken]

    def fail(source: Path, target: Path) -> object:
        if Path(source).name in ("step.c", "new"):
            raise OSError(28, "No space left on device")
        return real(source, target)

    monkeypatch.setattr(*((shutil, "copy", fail) if broken == "copy" else (Path, "rename", fail)))
    with pytest.raises(RequestError, match="No space left on device"):
        build(script, project, output)
    assert {path.name for path in tmp_path.iterdir()} == {"project", *(["space"] if earlier else [])}
    assert not earlier or (output / "app.py").read_text() == CONTENT["app.py"]


# --- its upload -----------------------------------------------------------------------------------------------------


@pytest.fixture
def space(script: ModuleType, project: Path, tmp_path: Path) -> Path:
    build(script, project, tmp_path / "space")
    return tmp_path / "space"


def publish(script: ModuleType, space: Path, **options: object) -> str:
    return str(script.publish(space, sorted({*CONTENT, *WRITTEN}), NAME, "secret-token", **options))


def test_new_space_is_created_and_filled_by_one_commit(script: ModuleType, space: Path) -> None:
    with FakeHub(NAME).connected() as hub:
        said = publish(script, space, private=True, hardware="t4-small")
    asked = {key: hub.created[key] for key in ("name", "organization", "type", "sdk", "visibility", "hardware")}
    assert list(asked.values()) == ["film", "owner", "space", "gradio", "private", "t4-small"]
    assert len(hub.commits) == 1
    assert hub.files is not None and set(hub.files) == {*CONTENT, *WRITTEN, ".gitattributes"}
    digest = hashlib.sha256(CONTENT["assets/mini/model.safetensors"].encode()).hexdigest()
    assert hub.files["assets/mini/model.safetensors"] == f"lfs {digest}".encode()
    assert hub.authorizations == {"Bearer secret-token"}
    assert f"https://huggingface.co/spaces/{NAME}" in said and "unchanged" not in said


def test_existing_space_loses_what_is_no_longer_part_in_the_same_commit(script: ModuleType, space: Path) -> None:
    old = dict.fromkeys([".gitattributes", "README.md", "old/gone.py", script.MARKER], b"old")
    with FakeHub(NAME, old).connected() as hub:
        said = publish(script, space, hardware="t4-small")
    (commit,) = hub.commits
    assert commit[0]["value"]["parentCommit"] == HEAD
    deleted = {line["value"]["path"] for line in commit if line["key"] == "deletedFile"}
    assert deleted == {"old/gone.py", script.MARKER}
    assert hub.files is not None and hub.files["README.md"] == (space / "README.md").read_bytes()
    assert hub.files[".gitattributes"] == b"old"
    assert "its visibility and hardware are unchanged" in said


def test_gitignore_of_an_existing_space_hides_no_file(script: ModuleType, space: Path) -> None:
    with FakeHub(NAME, {".gitignore": b"deep/\n"}).connected() as hub:
        publish(script, space)
    assert hub.files is not None and set(hub.files) == {*CONTENT, *WRITTEN}


def test_calls_fit_the_signatures_of_the_installed_hub_library(
    script: ModuleType, uploading: ModuleType, space: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = create_autospec(HfApi, instance=True)
    api.configure_mock(**{"repo_exists.return_value": False, "list_repo_files.return_value": ["gone.py"]})
    monkeypatch.setattr(uploading, "HfApi", create_autospec(HfApi, return_value=api))
    publish(script, space)
    asked = api.create_repo.call_args.kwargs
    assert asked == dict(repo_type="space", space_sdk="gradio", exist_ok=True, private=None, space_hardware=None)
    operations = api.create_commit.call_args.args[1]
    assert {operation.path_in_repo for operation in operations} == {*CONTENT, *WRITTEN, "gone.py"}
    api.upload_folder.assert_not_called()


@pytest.mark.parametrize(
    ("end", "status", "remedy"),
    [
        ("/create", 401, "hf auth login"),
        ("/create", 402, "requires a subscription or payment"),
        ("/create", 403, "write access"),
        ("/preupload/main", 500, "Try again later"),
        ("/commit/main", 412, "Another commit has just changed the Space"),
    ],
)
def test_refusal_of_the_hub_leaves_the_space_as_it_was(
    script: ModuleType, space: Path, end: str, status: int, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)  # the library waits between attempts
    hub = FakeHub(NAME, None if end == "/create" else {"README.md": b"old"})
    hub.refuse["POST", end] = status
    with hub.connected(), pytest.raises(CogVideoError) as caught:
        publish(script, space)
    assert remedy in caught.value.en and f"HTTP {status}" in caught.value.en and f"HTTP {status}" in caught.value.zh
    assert "secret-token" not in str(caught.value)
    assert hub.commits == [] and hub.files in (None, {"README.md": b"old"})


def test_broken_network_is_reported_with_its_reason(
    script: ModuleType, uploading: ModuleType, space: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = create_autospec(HfApi, instance=True)
    api.configure_mock(**{"repo_exists.side_effect": httpx2.ConnectError("no route to host")})
    monkeypatch.setattr(uploading, "HfApi", create_autospec(HfApi, return_value=api))
    with pytest.raises(CogVideoError, match=r"ConnectError: no route to host.*Check the network"):
        publish(script, space)


@pytest.mark.parametrize("name", ["film", "owner/", "a/b/c", "owner/film--x", "所有者/film", "owner/film.git", ""])
def test_bad_name_of_a_space_is_refused(
    script: ModuleType, uploading: ModuleType, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploading, "get_token", lambda: "secret-token")
    with pytest.raises(RequestError, match="OWNER/NAME"):
        uploading.token_for(name)


def run_script(script: ModuleType, project: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(script, "ROOT", project)
    return int(script.main(words))


def test_upload_without_a_token_builds_nothing(
    script: ModuleType,
    uploading: ModuleType,
    project: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(uploading, "get_token", lambda: None)
    output = tmp_path / "space"
    assert run_script(script, project, monkeypatch, "--output", str(output), "--upload", NAME) == 2
    said = capsys.readouterr().err
    assert "HF_TOKEN" in said and "hf auth login" in said and len(said.splitlines()) == 2
    assert not output.exists()


def test_script_builds_and_uploads_with_the_token_of_the_environment(
    script: ModuleType,
    project: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HF_TOKEN", "token-of-the-environment")
    words = ["--output", str(tmp_path / "space"), "--upload", NAME, "--project-url", "https://a.example/x"]
    with FakeHub(NAME).connected() as hub:
        assert run_script(script, project, monkeypatch, *words) == 0
    assert hub.authorizations == {"Bearer token-of-the-environment"}
    assert hub.files is not None and b"[films](https://a.example/x)" in hub.files["README.md"]
    said = capsys.readouterr().out
    assert f"spaces/{NAME}" in said and str(tmp_path / "space") in said


@pytest.mark.parametrize("words", [["--private"], ["--hardware", "abacus"], ["--project-url", "javascript:1"]])
def test_options_that_cannot_be_are_refused_before_any_work(
    script: ModuleType, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run_script(script, project, monkeypatch, "--output", str(tmp_path / "space"), *words)
    assert ended.value.code == 2
    assert not (tmp_path / "space").exists()
