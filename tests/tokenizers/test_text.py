"""Text: ids as icetk makes them, the five texts of a video, and a door that never breaks."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cogvideo.config import PRESETS
from cogvideo.errors import RequestError, WeightsError
from cogvideo.tokenizers.prompt import CheckedPrompt, KnownConcepts, check_prompt, tokenize_prompt
from cogvideo.tokenizers.text import (
    TextTokenizer,
    duration_text,
    first_frame_text,
    interpolation_text,
    round_seconds,
    superres_text,
    unconditional_text,
    video_text,
)
from tests.support.toy_text import MOTIONS, SCENES, SUBJECTS, train_text_model

PRESET = PRESETS["mini"]
PROMPT = "一只熊猫在草地上向右跑"
WORLD = KnownConcepts(SUBJECTS, SCENES, MOTIONS)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    return TextTokenizer(train_text_model(tmp_path_factory.mktemp("text")), PRESET.model.image_tokens)


def check(prompt: str, tokenizer: TextTokenizer, world: KnownConcepts | None = WORLD) -> CheckedPrompt:
    return check_prompt(prompt, tokenizer, PRESET, world)


def test_ids_come_after_the_image_tokens_and_read_back(tokenizer: TextTokenizer) -> None:
    ids = tokenizer.encode(PROMPT)
    assert min(ids) >= PRESET.model.image_tokens
    assert tokenizer.decode(ids) == PROMPT


def test_special_tokens_by_name(tokenizer: TextTokenizer) -> None:
    names = ("<unk>", "<pad>", "<n>")
    assert [tokenizer.token(name) for name in names] == [PRESET.model.image_tokens + i for i in range(3)]
    with pytest.raises(WeightsError, match="<boi>"):
        tokenizer.token("<boi>")


def test_the_five_texts(tokenizer: TextTokenizer) -> None:
    n, encode = tokenizer.token("<n>"), tokenizer.encode
    assert duration_text(tokenizer, 4) == [*encode("4.0秒"), n]
    assert duration_text(tokenizer, 0.25) == [*encode("0.25秒"), n]
    assert first_frame_text(tokenizer, PRESET, PROMPT) == encode(PROMPT + " 高清摄影")
    assert video_text(tokenizer, PRESET, PROMPT, 2.0) == [*encode("2.0秒"), n, *encode(PROMPT + " 视频")]
    assert unconditional_text(tokenizer, PRESET, 1.0) == [*encode("1.0秒"), n, *encode("视频")]
    assert interpolation_text(tokenizer, PROMPT, 0.5) == [*encode("0.5秒"), n, *encode(PROMPT)]
    assert superres_text(tokenizer, PROMPT) == encode(PROMPT)
    assert round_seconds(4.0, 3) == [2.0, 1.0, 0.5]


def test_a_good_prompt_passes_unchanged(tokenizer: TextTokenizer) -> None:
    assert check(PROMPT, tokenizer) == CheckedPrompt(PROMPT)


def test_spaces_and_line_breaks_collapse(tokenizer: TextTokenizer) -> None:
    assert check("  一只熊猫\n\t在草地上\u3000向右跑 ", tokenizer) == CheckedPrompt("一只熊猫 在草地上 向右跑")


@pytest.mark.parametrize(
    "prompt, zh, en",
    [
        ("", "是空的", "is empty"),
        (" \n\t\u3000 ", "是空的", "is empty"),
        ("\u200b\u200f", "是空的", "is empty"),
        ("a panda runs on grass", "没有汉字", "no Chinese character"),
        ("1234 ！？", "没有汉字", "no Chinese character"),
        ("熊猫\x00跑", "第 3 个字符是控制字符 U+0000", "Character 3 of the prompt is the control character U+0000"),
        ("熊猫\x1b[31m", "U+001B", "U+001B"),
        ("熊猫\ud800", "U+D800", "U+D800"),
        ("熊" * 10000, "有 10000 个字符，最多 1000 个", "10000 characters, 1000 at most"),
    ],
)
def test_bad_prompts_are_refused_in_both_languages(tokenizer: TextTokenizer, prompt: str, zh: str, en: str) -> None:
    with pytest.raises(RequestError) as refusal:
        check(prompt, tokenizer)
    assert zh in refusal.value.zh
    assert en in refusal.value.en


def test_too_long_says_how_many_tokens_are_too_many(tokenizer: TextTokenizer) -> None:
    prompt = "一只熊猫在草地上向右跑，" * 8
    with pytest.raises(RequestError) as refusal:
        check(prompt, tokenizer)
    used = len(tokenizer.encode(prompt))
    limit = int(refusal.value.en.split("tokens, ")[1].split()[0])
    assert f"{used} tokens" in refusal.value.en
    assert f"{used - limit} too many" in refusal.value.en
    assert f"超出 {used - limit} 个" in refusal.value.zh
    fits = "跑" * 40
    while len(tokenizer.encode(fits)) > limit:
        fits = fits[:-1]
    check(fits, tokenizer)  # exactly the limit passes, one more does not
    with pytest.raises(RequestError, match="1 too many"):
        check(fits + "跑", tokenizer)


def test_every_text_of_an_accepted_prompt_fits(tokenizer: TextTokenizer) -> None:
    prompt = "跑"
    longest = 0
    while True:
        try:
            prompt = check(prompt + "跑", tokenizer).text
        except RequestError:
            break
        longest = len(video_text(tokenizer, PRESET, prompt, 0.5))
        assert longest <= PRESET.model.text_length
        assert len(first_frame_text(tokenizer, PRESET, prompt)) <= PRESET.model.text_length
        assert len(interpolation_text(tokenizer, prompt, 0.0625)) <= PRESET.model.text_length
        assert len(superres_text(tokenizer, prompt)) <= PRESET.model.superres_text_length
    assert longest > PRESET.model.text_length // 2


def test_the_superres_length_counts_only_where_it_is_used(tokenizer: TextTokenizer) -> None:
    narrow = dataclasses.replace(PRESET, model=dataclasses.replace(PRESET.model, superres_text_length=2))
    with pytest.raises(RequestError, match="2 at most"):
        check_prompt(PROMPT, tokenizer, narrow)
    assert check_prompt(PROMPT, tokenizer, narrow, superres=False).text == PROMPT


def test_traditional_characters_are_converted_and_shown(tokenizer: TextTokenizer) -> None:
    checked = check("一隻熊貓在草地上向右跑", tokenizer)
    assert checked.text == PROMPT
    (note,) = checked.notes
    assert "繁体" in note.message("zh")
    assert PROMPT in note.message("en")


def test_unknown_words_are_named_with_what_is_known(tokenizer: TextTokenizer) -> None:
    (note,) = check("一只鲸鱼在草地上向右跑", tokenizer).notes
    assert "鲸鱼" in note.zh
    assert "鲸鱼" in note.en
    assert "熊猫" in note.zh
    assert "雪地" in note.en


def test_unknown_words_are_named_without_a_world_too(tokenizer: TextTokenizer) -> None:
    (note,) = check("鲸鱼", tokenizer, world=None).notes
    assert note.en.endswith("may not match this part of the prompt.")
    assert note.zh.endswith("不符。")


@pytest.mark.parametrize(
    "dressed",
    ["<b>{}</b>", "\u202e{}", "{}\u200b", "\ufeff{}", "<n>{}<start_of_image>", "＜n＞{}", "{}<n﹥", "{}＜ｎ>"],
)
def test_markup_and_invisible_characters_go_with_a_note(tokenizer: TextTokenizer, dressed: str) -> None:
    checked = check(dressed.format(PROMPT), tokenizer)
    assert checked.text == PROMPT
    assert len(checked.notes) == 1


def test_quotes_and_shell_words_are_just_text(tokenizer: TextTokenizer) -> None:
    assert check(f'{PROMPT}\'; rm -rf "$HOME" `x`', tokenizer).text.startswith(PROMPT)


@settings(max_examples=200, deadline=None)
@given(prompt=st.one_of(st.text(max_size=80), st.text(alphabet="熊猫貓在草地<＜n＞﹥>\x00\u200b \n跑🐼é", max_size=60)))
def test_any_prompt_is_accepted_or_refused_in_two_languages(tokenizer: TextTokenizer, prompt: str) -> None:
    try:
        checked = check(prompt, tokenizer)
    except RequestError as refusal:
        assert refusal.zh and refusal.en
        return
    assert len(video_text(tokenizer, PRESET, checked.text, 4.0)) <= PRESET.model.text_length
    assert checked.text == checked.text.strip()
    assert "\n" not in checked.text
    assert tokenizer.token("<n>") not in tokenizer.encode(checked.text)
    assert check(checked.text, tokenizer).text == checked.text  # the model's text is a fixed point


def test_missing_and_damaged_vocabularies_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"gone\.model"):
        TextTokenizer(tmp_path / "gone.model", 10)
    broken = tmp_path / "broken.model"
    broken.write_bytes(b"<html>not found</html>")
    with pytest.raises(WeightsError, match=r"broken\.model"):
        TextTokenizer(broken, 10)


def test_world_file(tmp_path: Path) -> None:
    path = tmp_path / "world.json"
    assert KnownConcepts.load(path) == KnownConcepts()
    path.write_text(json.dumps({"subjects": ["熊猫"], "motions": ["跳"]}), encoding="utf-8")
    assert KnownConcepts.load(path) == KnownConcepts(("熊猫",), (), ("跳",))


def test_a_prompt_can_be_seen_as_the_model_reads_it(tokenizer: TextTokenizer) -> None:
    reading = tokenize_prompt("一隻熊貓在草地上向右跑", tokenizer, PRESET)
    assert "".join(piece for piece, _ in reading.pieces).strip() == PROMPT
    assert len(reading.pieces) == len(tokenizer.encode(PROMPT)) <= reading.limit
    assert all(known for _, known in reading.pieces)
    assert ("猹", False) in [
        (piece.strip(), known) for piece, known in tokenize_prompt("熊猫猹", tokenizer, PRESET).pieces
    ]
    long = tokenize_prompt("熊猫" * 100, tokenizer, PRESET)
    with pytest.raises(RequestError, match=f"{long.limit} at most"):
        check("熊猫" * 100, tokenizer)
    with pytest.raises(RequestError):
        tokenize_prompt("  ", tokenizer, PRESET)
