"""Where artifacts live, and names that give away no path."""

from __future__ import annotations

from typing import TYPE_CHECKING

from asr_fine_tuner.locations import ArtifactHome, is_on_hub, public_name

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_artifacts_live_in_the_cache_of_hugging_face(hf_home: Path) -> None:
    home = ArtifactHome.of("fleurs-it")
    assert home.artifact == hf_home / "assets" / "asr-fine-tuner" / "artifacts" / "fleurs-it" / "artifact"
    assert {home.partial.parent, home.lock.parent} == {home.folder}
    assert ArtifactHome.of("fleurs-de").folder != home.folder


def test_what_is_here_is_not_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "google" / "fleurs").mkdir(parents=True)
    assert not is_on_hub("google/fleurs")
    assert is_on_hub("google/other")
    assert not is_on_hub("/somewhere/else")
    assert not is_on_hub("a/b/c")


def test_only_the_last_part_of_a_path_is_public(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "speech").mkdir()
    assert public_name("google/fleurs") == "google/fleurs"
    assert public_name(str(tmp_path / "speech") + "/") == "speech"
    assert public_name("~/clips.zip") == "clips.zip"
    assert public_name(".") == tmp_path.name
