"""The table at the end of the preprocess job."""

from __future__ import annotations

import pytest
import tiny

from asr_fine_tuner.columns import Columns
from asr_fine_tuner.manifest import read_manifest
from asr_fine_tuner.summary import show_artifact

COLUMNS = Columns("audio", "sentence", "speaker_id")


def test_it_shows_clips_hours_durations_rejections_and_sizes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    manifest = read_manifest(tiny.artifact()).model_copy(update={"rejected": {"silent": 3, "too_long": 1}})
    show_artifact(tiny.artifact(), manifest, COLUMNS, artifact_bytes=1_234_567, bytes_fetched=89_000)
    out, shown = capsys.readouterr()
    assert out == ""
    lines = [line.split() for line in shown.replace("│", " ").splitlines()]
    assert ["dataset", "(it),", "Italian"] in lines
    assert ["train", "train", "96", "0.02", "13"] in lines
    assert ["validation", "validation", "8", "0.00", "14"] in lines
    assert ["0", "to", "1", "s", "112", "█" * 24] in lines
    assert ["rejected", "silent:", "3"] in lines
    assert ["rejected", "too_long:", "1"] in lines
    assert "columns   audio audio, text sentence, speaker speaker_id" in shown.splitlines()
    assert "example   000.flac: Frase numero 0." in shown.splitlines()
    assert shown.rstrip().endswith(f"artifact  {tiny.artifact()} (1.23 MB, 89 kB fetched)")


def test_names_of_the_dataset_are_neither_markup_nor_controls(capsys: pytest.CaptureFixture[str]) -> None:
    whole = read_manifest(tiny.artifact())
    dataset = whole.dataset.model_copy(update={"id": "[red]\x1b[31mname", "splits": {"train": "[/]train"}})
    columns = Columns("[b]audio", "te\x1bxt", None)
    manifest = whole.model_copy(update={"dataset": dataset})
    show_artifact(tiny.artifact(), manifest, columns, artifact_bytes=1, bytes_fetched=0)
    shown = capsys.readouterr().err
    assert "[red]\\x1b[31mname (it), Italian" in shown
    assert "[/]train" in shown
    assert "audio [b]audio, text te\\x1bxt, speaker unknown" in shown
    assert "\x1b" not in shown


def test_nothing_fetched(capsys: pytest.CaptureFixture[str]) -> None:
    show_artifact(tiny.artifact(), read_manifest(tiny.artifact()), COLUMNS, artifact_bytes=999, bytes_fetched=0)
    assert "(999 bytes, nothing fetched)" in capsys.readouterr().err
