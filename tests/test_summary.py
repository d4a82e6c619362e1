"""The table at the end of the preprocess job."""

from __future__ import annotations

import pytest
import tiny

from asr_fine_tuner.manifest import read_manifest
from asr_fine_tuner.summary import show_artifact


def test_it_shows_clips_hours_durations_rejections_and_sizes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    manifest = read_manifest(tiny.artifact()).model_copy(update={"rejected": {"silent": 3, "too_long": 1}})
    show_artifact(tiny.artifact(), manifest, artifact_bytes=1_234_567, bytes_fetched=89_000)
    out, shown = capsys.readouterr()
    assert out == ""
    lines = [line.split() for line in shown.replace("│", " ").splitlines()]
    assert ["dataset", "(it),", "Italian"] in lines
    assert ["train", "train", "96", "0.02", "13"] in lines
    assert ["validation", "validation", "8", "0.00", "14"] in lines
    assert ["0", "to", "1", "s", "112", "█" * 24] in lines
    assert ["rejected", "silent:", "3"] in lines
    assert ["rejected", "too_long:", "1"] in lines
    assert shown.rstrip().endswith(f"artifact  {tiny.artifact()} (1.23 MB, 89 kB fetched)")


def test_nothing_fetched(capsys: pytest.CaptureFixture[str]) -> None:
    show_artifact(tiny.artifact(), read_manifest(tiny.artifact()), artifact_bytes=999, bytes_fetched=0)
    assert "(999 bytes, nothing fetched)" in capsys.readouterr().err
