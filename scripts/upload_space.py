"""Publish a built Space: checks before any work, then one commit. Used by build_space.py."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from cogvideo.errors import CogVideoError, RequestError

KEPT = ".gitattributes"
"""The file of a Space that is not part of a build, and stays: it configures how the hub stores large files."""

REMEDIES = {
    401: ("请用 hf auth login 重新登录，或更换 HF_TOKEN。", "Log in again with hf auth login, or replace HF_TOKEN."),
    402: (
        "hub 要求订阅或付费：请查看账户的计费设置，或用 --hardware 选择其他设备。",
        "The hub requires a subscription or payment: see the billing settings, or choose another --hardware.",
    ),
    403: ("请使用对该账户有写权限的令牌。", "Use a token with write access to this owner."),
    412: (
        "Space 刚被其他提交更改：请再运行一次。",
        "Another commit has just changed the Space: run the command again.",
    ),
}
"""HTTP status of the hub -> what to do, in Chinese and English."""


class UploadError(CogVideoError):
    """An upload that the hub refused or that the network interrupted. The Space has all of the commit or nothing."""


def token_for(space: str) -> str:
    """Return the token to upload to `space`. Raises RequestError if the name is invalid or there is no token."""
    try:
        if space.count("/") != 1:
            raise HFValidationError("one / is required")
        validate_repo_id(space)
    except HFValidationError as error:
        raise RequestError(
            f"Space 名称 {space!r} 无效：--upload 需要“所有者/名称”，只含字母、数字、-、_ 和 .，最多 96 个字符。",
            f"The name {space!r} is no Space: --upload takes OWNER/NAME, made of letters, digits, -, _ and ., "
            "at most 96 characters.",
        ) from error
    token = get_token()
    if not token:
        raise RequestError(
            "没有 Hugging Face 令牌：请设置环境变量 HF_TOKEN（需要写权限），或运行 hf auth login。",
            "There is no Hugging Face token: set the environment variable HF_TOKEN (with write access), or run "
            "hf auth login.",
        )
    return token


def publish(
    folder: Path, files: Sequence[str], space: str, token: str, *, private: bool = False, hardware: str | None = None
) -> str:
    """Make `files` of `folder` the content of `space`, and return what was done, in both languages.

    Large files are sent first, by LFS or Xet; then one commit adds all files and deletes those that are no longer part.
    HfApi.upload_folder is not used: it splits large folders into several commits. `private` and `hardware` apply to
    a new Space only. Raises UploadError.
    """
    api = HfApi(token=token)
    try:
        existed = api.repo_exists(space, repo_type="space")
        url = api.create_repo(
            space,
            repo_type="space",
            space_sdk="gradio",
            exist_ok=True,
            private=private or None,
            space_hardware=hardware,  # type: ignore[arg-type]  # a string is documented, and sent as it is
        )
        head = api.space_info(space).sha
        present = api.list_repo_files(space, repo_type="space", revision=head)
        gone = sorted(set(present) - {*files, KEPT})
        commit = api.create_commit(
            space,
            [
                *(CommitOperationDelete(path, is_folder=False) for path in gone),
                *(CommitOperationAdd(path, folder / path) for path in files),
            ],
            commit_message="Build of CogVideo for everyone",
            repo_type="space",
            parent_commit=head,
        )
    except HfHubHTTPError as error:
        raise _refused(space, error) from error
    except Exception as error:  # its transports (HTTP, Xet) have exceptions of their own
        raise _failed(space, f"{type(error).__name__}: {error}", ("请检查网络。", "Check the network.")) from error
    done = f"已上传 / uploaded: {url} ({commit.oid[:8]})"
    if existed and (private or hardware):
        done += (
            f"\n该 Space 原已存在，可见性和设备保持不变：请在 {url}/settings 修改。"
            f"\nThe Space existed; its visibility and hardware are unchanged: see {url}/settings."
        )
    return done


def _refused(space: str, error: HfHubHTTPError) -> UploadError:
    status = error.response.status_code
    said = error.server_message or str(error).strip().splitlines()[0]
    again = ("请稍后再试。", "Try again later.")
    return _failed(space, f"HTTP {status}: {said}", REMEDIES.get(status, again))


def _failed(space: str, reason: str, remedy: tuple[str, str]) -> UploadError:
    return UploadError(
        f"上传到 {space} 失败（{reason}）。{remedy[0]}提交要么完整，要么不存在；可以重复运行。",
        f"The upload to {space} failed ({reason}). {remedy[1]} The commit is complete or absent; the command can be "
        "repeated.",
    )
