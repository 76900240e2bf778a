"""Parity with the outputs of the 2022 release: every golden array within 1e-4."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from cogvideo.cli import parity as cli_parity
from cogvideo.errors import WeightsError
from cogvideo.evaluation import parity
from cogvideo.models import loader

GOLDEN = Path(__file__).parents[1] / "golden"

FOLLOWED = [
    "stage1_first_frame",
    "stage1_guided",
    "stage1_unguided",
    "stage2_plain",
    "stage2_guided_masked",
    "stage2_unguided_masked",
    "train1_logits",
    "train1_nll",
    "train1_loss",
    "train2_logits",
    "train2_nll",
    "train2_loss",
    "dsr",
    "sampling_first_frame",
    "sampling_video",
    "sampling_dsr",
]


def test_all_arrays_equal_those_of_the_release(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli_parity.main([str(GOLDEN)]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    compared = {row[0]: float(row[1]) for row in rows if row[1] != "not"}
    assert list(compared) == FOLLOWED
    assert max(compared.values()) < 1e-4
    assert {row[0] for row in rows if row[1] == "not"} == set(parity.NOT_FOLLOWED)


class FakeParity:
    """Stands for the comparison: one array agrees, the other one does not."""

    def __init__(self, difference: float) -> None:
        self.difference = difference

    def __call__(self, *_: object) -> FakeParity:
        return self

    def differences(self) -> list[tuple[str, float]]:
        return [("near", 1e-5), ("far", self.difference)]


@pytest.mark.parametrize(("difference", "status"), [(9e-5, 0), (1.1e-4, 1), (float("nan"), 1)])
def test_array_over_the_tolerance_fails(
    difference: float, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli_parity, "Parity", FakeParity(difference))
    assert cli_parity.main([str(GOLDEN)]) == status
    assert ("over 0.0001" in capsys.readouterr().out) == bool(status)


def test_changed_weights_exceed_the_tolerance() -> None:
    models = loader.load_published(GOLDEN)
    with torch.no_grad():
        models.superres.get_mixin("attention_plus").dense[3].bias[:8] += 1e-2
    checked = parity.Parity(models, parity.read_golden(GOLDEN / "golden.npz"))
    [(name, value)] = checked._superres()
    assert np.abs(value - checked.golden[name]).max() > parity.TOLERANCE


def test_damaged_golden_file_is_named(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "golden.npz"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(WeightsError, match=r"golden\.npz"):
        cli_parity.main([str(tmp_path)])
