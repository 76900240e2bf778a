"""Are the tests awake? Small changes that cosmic-ray makes are tried on a module, one at a time, and its tests run.

python scripts/checks/mutation.py [--all] [--json FILE] [--only cogvideo/token_layout.py] [--again FILE]. Nothing is
written to the sources: each mutant lives in a process of its own, forked from one that has the heavy packages loaded,
and dies with it. A mutant is killed where a test fails, hangs or cannot be collected. Those that survive are printed
as a diff.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import functools
import importlib
import itertools
import json
import os
import signal
import sys
import time
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TESTS = {
    "cogvideo/token_layout.py": ["tests.test_token_layout"],
    "cogvideo/inference/sampling.py": ["tests.inference.test_sampling"],
}
LONGEST = 120
"""Seconds of processor time after which a mutant counts as hanging."""
EXAMPLES = 25
"""Of hypothesis for each test: mutants that live on inputs as rare as one in 25 are not looked for."""

PAIRS = {
    "Binary": "Add_Sub Sub_Add Mul_FloorDiv Div_Mul FloorDiv_Mul Mod_FloorDiv Pow_Mul BitAnd_BitOr BitOr_BitAnd "
    "BitXor_BitAnd RShift_LShift",
    "Comparison": "Eq_NotEq NotEq_Eq Gt_GtE Gt_LtE GtE_Gt GtE_Lt Lt_LtE Lt_GtE LtE_Lt LtE_Gt Is_IsNot",
}
"""Operators that are exchanged, unless all are: at every place the likeliest slip, and both neighbours of a limit."""


@dataclass(frozen=True)
class Mutant:
    """One change. `source`: the whole changed module."""

    path: str
    operator: str
    occurrence: int
    source: str

    def diff(self) -> str:
        before = (ROOT / self.path).read_text("utf-8").splitlines()
        lines = difflib.unified_diff(before, self.source.splitlines(), self.path, self.operator, n=0, lineterm="")
        return "\n".join(lines)


@dataclass(frozen=True)
class Verdict:
    """What became of a mutant; `diff` is empty for killed ones."""

    path: str
    operator: str
    occurrence: int
    survived: bool
    diff: str


def wanted(operator: str) -> bool:
    """Whether an operator of cosmic-ray is among those that are tried unless all are."""
    name = operator.removeprefix("core/")
    for kind, pairs in PAIRS.items():
        if name.startswith(f"Replace{kind}Operator_"):
            return name.removeprefix(f"Replace{kind}Operator_") in pairs.split()
    return True


def mutants(path: str, everything: bool = False) -> Iterator[Mutant]:
    """All changes that change what the module does, each once: annotations and constants' doubles are left out."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator, operator_names

    source = (ROOT / path).read_text("utf-8")
    seen = {_meaning(source)}
    for name in operator_names():
        make = get_operator(name)
        if make.arguments() or not (everything or wanted(name)):  # with arguments: replaces names that one chooses
            continue
        operator, occurrence = make(), 0
        while (changed := mutate_code(source, operator, occurrence)) is not None:
            meaning = _meaning(changed)
            if meaning is not None and meaning not in seen:
                seen.add(meaning)
                yield Mutant(path, name, occurrence, changed)
            occurrence += 1


def _meaning(source: str) -> str | None:
    """The syntax tree without annotations and literal types, which nobody evaluates; None where there is none."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return None
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, ast.FunctionDef):
            node.returns = None
        elif isinstance(node, ast.AnnAssign):
            node.annotation = ast.Constant(None)
        elif isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == "Literal":
            node.slice = ast.Constant(None)
    return ast.dump(tree)


def survives(mutant: Mutant) -> bool:
    """Whether all tests of the module pass with the change."""
    child = os.fork()
    if child == 0:
        os._exit(_test(mutant))
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) == 0


def _test(mutant: Mutant) -> int:
    """In a process of its own: the module as changed, then its tests, one call after another. 0: all pass."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, LONGEST)
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    name = mutant.path.removesuffix(".py").replace("/", ".")
    module = types.ModuleType(name)
    module.__file__ = str(ROOT / mutant.path)
    package, _, short = name.rpartition(".")
    sys.modules[name] = module
    setattr(importlib.import_module(package), short, module)
    try:
        exec(compile(mutant.source, module.__file__, "exec"), module.__dict__)
        for test in TESTS[mutant.path]:
            for case in cases(importlib.import_module(test)):
                case()
    except BaseException:
        return 1
    return 0


def cases(tests: types.ModuleType) -> Iterator[Callable[[], object]]:
    """The test functions of a module, once for each combination of their parameters. They may use no fixtures."""
    for name, test in vars(tests).items():
        if not name.startswith("test_"):
            continue
        marks = [mark for mark in getattr(test, "pytestmark", ()) if mark.name == "parametrize"]
        rows = [[_named(mark.args[0], value) for value in mark.args[1]] for mark in marks]
        for combination in itertools.product(*rows):
            yield functools.partial(test, **{key: value for row in combination for key, value in row.items()})


def _named(names: str | Sequence[str], values: Any) -> dict[str, Any]:
    """One row of a parametrized test: "a, b" and (1, 2) -> {"a": 1, "b": 2}."""
    split = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
    return dict(zip(split, [values] if len(split) == 1 else values, strict=True))


def _prepare() -> None:
    """Loads what all mutants share: nothing that hands a module's own things to its tests."""
    import hypothesis.strategies
    import numpy
    import pytest
    import torch

    torch.set_num_threads(1)  # a process that forks may have no other threads
    phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
    hypothesis.settings.register_profile(
        "mutation", deadline=None, derandomize=True, max_examples=EXAMPLES, phases=phases, database=None
    )
    hypothesis.settings.load_profile("mutation")
    from tests.support import small_lm  # sizes alone are used of it, and the models that it imports take long

    assert all((hypothesis.strategies, numpy, pytest, small_lm))
    os.chdir(ROOT)


def judge(paths: list[str], everything: bool, again: set[tuple[str, str, int]] | None) -> list[Verdict]:
    """The mutants of the modules, or those of `again` alone; prints survivors as they are found."""
    verdicts: list[Verdict] = []
    began = time.monotonic()
    for path in paths:
        for mutant in mutants(path, everything or again is not None):
            if again is not None and (path, mutant.operator, mutant.occurrence) not in again:
                continue
            survived = survives(mutant)
            verdicts.append(
                Verdict(path, mutant.operator, mutant.occurrence, survived, mutant.diff() if survived else "")
            )
            if survived:
                print(verdicts[-1].diff, flush=True)
            if len(verdicts) % 10 == 0:
                print(f"# {len(verdicts)} mutants, {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return verdicts


def main() -> int:
    """Prints survivors and the score of each module; 0 always, for some mutants mean the same as the original."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="every operator for every other: four times as many")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all verdicts there")
    parser.add_argument("--only", choices=TESTS, help="one module")
    parser.add_argument("--again", type=Path, metavar="FILE", help="only what survived in the verdicts of that file")
    options = parser.parse_args()
    sys.path[:0] = [str(ROOT)]
    again = None
    if options.again:
        before = [Verdict(**verdict) for verdict in json.loads(options.again.read_text("utf-8"))]
        again = {(v.path, v.operator, v.occurrence) for v in before if v.survived}
    _prepare()
    verdicts = judge([options.only] if options.only else list(TESTS), options.all, again)
    if options.json:
        options.json.write_text(json.dumps([asdict(verdict) for verdict in verdicts], indent=1), encoding="utf-8")
    for path in TESTS:
        mine = [verdict for verdict in verdicts if verdict.path == path]
        killed = sum(not verdict.survived for verdict in mine)
        if mine:
            print(f"{path}: {killed} of {len(mine)} mutants killed, {100 * killed / len(mine):.1f} %")
    return 0


if __name__ == "__main__":
    sys.exit(main())
