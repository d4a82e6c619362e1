"""results.py: what is written is what was found, comes back, and tells nothing of the machine."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from rich.console import Console
from sample_results import some_results

from asr_fine_tuner.errors import PermanentError
from asr_fine_tuner.results import (
    Source,
    SplitScores,
    read_results,
    relative_change,
    results_table,
    write_results,
)


def test_results_come_back_from_their_file(tmp_path: Path) -> None:
    results = some_results()
    write_results(results, tmp_path / "results.json")
    assert read_results(tmp_path / "results.json") == results
    record = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert record["splits"]["test"]["tuned"]["wer"]["rate"] == pytest.approx(1 / 7)
    assert record["leading_metric"] == "wer"


def test_a_model_that_does_worse_than_its_base_is_warned_of(tmp_path: Path) -> None:
    results = some_results()
    better = results.splits["test"]
    assert results.warning is None
    assert dataclasses.replace(results, splits={"test": SplitScores(better.tuned, better.tuned)}).warning is None
    assert dataclasses.replace(results, splits={"test": SplitScores(None, better.tuned)}).warning is None
    assert better.base is not None
    worse = dataclasses.replace(results, splits={**results.splits, "test": SplitScores(better.tuned, better.base)})
    assert worse.warning == (
        "the tuned model does worse than the base model on the test split: WER, normalised 71.43 % against 14.29 %"
    )
    write_results(worse, tmp_path / "results.json")
    assert json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["warning"] == worse.warning


def test_a_run_without_base_scores_comes_back(tmp_path: Path) -> None:
    results = some_results()
    tuned = results.splits["test"].tuned
    results = dataclasses.replace(results, splits={"test": SplitScores(None, tuned)}, language_token="zh")
    write_results(results, tmp_path / "results.json")
    assert read_results(tmp_path / "results.json") == results
    assert results.leading_metric == "cer"


@pytest.mark.parametrize("content", [None, "", "{}", '{"model_name": 1}'])
def test_a_damaged_file_is_named(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "results.json"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(PermanentError, match=r"results\.json"):
        read_results(path)


def test_a_local_source_is_known_by_its_folder_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo" / "model").mkdir(parents=True)
    assert Source.of("demo/model") == Source("model", on_hub=False)
    assert Source.of(str(tmp_path / "secret" / "corpus.zip")) == Source("corpus.zip", on_hub=False)
    assert Source.of("./") == Source(tmp_path.name, on_hub=False)
    assert Source.of("google/fleurs", revision="abc", config="it_it") == Source("google/fleurs", True, "abc", "it_it")


def test_the_table_shows_base_against_tuned() -> None:
    console = Console(width=120, record=True)
    console.print(results_table(some_results()))
    shown = console.export_text()
    assert "test (2 clips)" in shown
    assert "71.43 %" in shown
    assert "14.29 %" in shown
    assert "-80 %" in shown


def test_a_change_from_nothing_is_not_told() -> None:
    assert relative_change(0.0, 0.1) == relative_change(None, 0.1) == "–"
    assert relative_change(0.5, 0.75) == "+50 %"
