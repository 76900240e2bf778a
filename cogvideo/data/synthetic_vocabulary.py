"""Subjects, scenes and motions of the synthetic world, and the Chinese words for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Subject:
    """An animal or a thing that clips show."""

    name: str
    emoji: str
    measure: str
    """Numeral and measure word, such as 一只."""
    kind: str
    """Selects the verbs: animal, flyer, vehicle, ball, fruit or sky."""
    aliases: tuple[str, ...] = ()
    """Other common names."""


SUBJECTS: Final = (
    Subject("熊猫", "🐼", "一只", "animal", ("大熊猫",)),
    Subject("小猫", "🐱", "一只", "animal", ("猫", "猫咪")),
    Subject("小狗", "🐶", "一只", "animal", ("狗", "狗狗")),
    Subject("兔子", "🐰", "一只", "animal", ("小兔子",)),
    Subject("老虎", "🐯", "一只", "animal", ("小老虎",)),
    Subject("青蛙", "🐸", "一只", "animal", ("小青蛙",)),
    Subject("小猪", "🐷", "一只", "animal", ("猪",)),
    Subject("企鹅", "🐧", "一只", "animal", ("小企鹅",)),
    Subject("猫头鹰", "🦉", "一只", "flyer"),
    Subject("章鱼", "🐙", "一只", "animal"),
    Subject("蝴蝶", "🦋", "一只", "flyer"),
    Subject("汽车", "🚘", "一辆", "vehicle", ("小汽车", "轿车")),
    Subject("公交车", "🚍", "一辆", "vehicle", ("公共汽车", "巴士")),
    Subject("火箭", "🚀", "一枚", "flyer"),
    Subject("帆船", "⛵", "一艘", "vehicle", ("小船",)),
    Subject("足球", "⚽", "一个", "ball"),
    Subject("篮球", "🏀", "一个", "ball"),
    Subject("苹果", "🍎", "一个", "fruit", ("红苹果",)),
    Subject("西瓜", "🍉", "一块", "fruit"),
    Subject("草莓", "🍓", "一颗", "fruit"),
    Subject("香蕉", "🍌", "一根", "fruit"),
    Subject("太阳", "🌞", "一轮", "sky", ("红太阳",)),
    Subject("月亮", "🌙", "一弯", "sky"),
    Subject("星星", "⭐", "一颗", "sky", ("小星星",)),
)

SCENES: Final = ("草地", "雪地", "大海", "夜空", "沙漠", "街道")

SCENE_PHRASES: Final = {
    "草地": ("草原上", "草地上", "草地里", "绿色的草地上"),
    "雪地": ("雪里", "雪地上", "雪地里", "白色的雪地上"),
    "大海": ("海上", "大海上", "海面上", "蓝色的大海上"),
    "夜空": ("星空中", "夜空中", "夜空里", "黑色的夜空中"),
    "沙漠": ("沙漠里", "沙漠中", "金色的沙漠里"),
    "街道": ("马路上", "街道上", "街上", "城市的街道上"),
}

MOTIONS: Final = ("向左", "向右", "向上", "向下", "跳", "旋转", "变大", "变小")

_DIRECTIONS: Final = {
    "向左": ("向左", "往左"),
    "向右": ("向右", "往右"),
    "向上": ("向上", "往上"),
    "向下": ("向下", "往下"),
}

DIRECTION_WORDS: Final = tuple(word for words in _DIRECTIONS.values() for word in words)

_TRAVEL: Final = {
    "animal": ("跑", "走", "移动"),
    "flyer": ("飞", "移动"),
    "vehicle": ("开", "行驶", "移动"),
    "ball": ("滚", "滚动", "移动"),
    "fruit": ("滚", "移动"),
    "sky": ("移动", "飞"),
}

_VERBS: Final = {
    "跳": ("跳", "跳跃", "跳来跳去", "上下跳动"),
    "旋转": ("旋转", "转圈", "转动", "不停地旋转"),
    "变大": ("变大", "越来越大", "慢慢变大"),
    "变小": ("变小", "越来越小", "慢慢变小"),
}

UNDIRECTED_VERB: Final = "移动"
"""Verb for a movement without a name."""

SIZE_WORDS: Final = {2: ("小小的", "很小的"), 3: ("可爱的", "漂亮的"), 4: ("巨大的", "很大的")}


TEMPLATES: Final = (
    "{q}{a}{n}在{s}{v}",
    "{s}有{q}{a}{n}在{v}",
    "{s}，{q}{a}{n}正在{v}",
    "{q}{a}{n}正在{s}{v}",
    "在{s}，{q}{a}{n}{v}",
    "{a}{n}在{s}{v}",
)
"""Patterns of captions: q measure word, a adjective, n name, s scene, v verb."""


def verb_phrases(subject: Subject, motion: str) -> tuple[str, ...]:
    """Return natural verbs for what `subject` does, such as 向右跑."""
    if motion in _DIRECTIONS:
        phrases = [d + t for d in _DIRECTIONS[motion] for t in _TRAVEL[subject.kind]]
        if motion == "向上":
            phrases += ["上升"]
        if motion == "向下":
            phrases += ["下降", "落下来"]
        return tuple(phrases)
    return _VERBS[motion]
