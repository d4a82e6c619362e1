"""model_card.py: the metadata that the Hub reads, the text that people read, and nothing of the machine."""

from __future__ import annotations

import ast
import dataclasses
import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from sample_results import some_results

from asr_fine_tuner.languages import resolve_language
from asr_fine_tuner.model_card import write_model_card
from asr_fine_tuner.results import Source, SplitScores, TrainingResults


def _card(folder: Path, results: TrainingResults, **more: str) -> ModelCard:
    return ModelCard.load(write_model_card(folder, results, **more))


def test_the_hub_can_file_the_model(tmp_path: Path) -> None:
    metadata = _card(tmp_path, some_results(), licence="apache-2.0").data.to_dict()
    assert metadata["language"] == "it"
    assert metadata["license"] == "apache-2.0"
    assert metadata["base_model"] == "openai/whisper-small"
    assert metadata["datasets"] == ["google/fleurs"]
    assert metadata["library_name"] == "transformers"
    assert metadata["pipeline_tag"] == "automatic-speech-recognition"
    assert {"automatic-speech-recognition", "whisper", "hf-asr-leaderboard"} <= set(metadata["tags"])
    (index,) = metadata["model-index"]
    assert index["name"] == "whisper-small-it"
    (result,) = index["results"]
    assert result["dataset"] == {
        "name": "google/fleurs",
        "type": "google/fleurs",
        "config": "it_it",
        "split": "test",
        "revision": "70bb2e84b976b7e960aa89f1c648e09c59f894dd",
        "args": {"language": "it"},
    }
    values = [(metric["type"], metric["name"], metric["value"]) for metric in result["metrics"]]
    assert values == [
        ("wer", "WER, normalised", 14.29),
        ("wer", "WER, Whisper's normalisation", 14.29),
        ("cer", "CER, normalised", 3.23),
    ]


@pytest.mark.parametrize(
    ("packing", "told"),
    [
        ({"clips_per_window": 5.5, "single_clip_share": 0.75}, "single clips, and on some that were joined: on long"),
        ({"clips_per_window": 5.5, "single_clip_share": 1.0}, "single clips without timestamps: on long"),
        ({"clips_per_window": 5.5, "single_clip_share": 0.0}, "Trained on clips that were joined: on long"),
        ({"clips_per_window": 1.0, "single_clip_share": 0.75}, "single clips without timestamps: on long"),
    ],
)
def test_people_read_what_it_was_trained_on(packing: dict[str, float], told: str, tmp_path: Path) -> None:
    results = some_results()
    results.hyperparameters.update(packing)
    assert told in _card(tmp_path, results).text


def test_people_read_base_against_tuned_and_how_to_use_it(tmp_path: Path) -> None:
    card = _card(tmp_path, some_results(), repo_id="someone/whisper-small-it", curves="training_curves.png")
    assert "| WER, normalised | 71.43 % | 14.29 % | -80 % |" in card.text
    assert "![" in card.text
    assert "(training_curves.png)" in card.text
    assert "| train | train | 3,030 | 9.04 |" in card.text
    assert "4 clips (empty text 1, too long 3)" in card.text
    assert "| `learning_rate` | 1e-05 |" in card.text
    assert "transformers 5.23.0" in card.text
    assert "best on validation by WER" in card.text
    snippet = re.search(r"```python\n(.*?)```", card.text, re.DOTALL)
    assert snippet is not None
    ast.parse(snippet[1])
    assert 'model="someone/whisper-small-it"' in snippet[1]
    assert '"language": "italian", "task": "transcribe"' in snippet[1]


def test_an_english_only_model_is_not_told_a_language(tmp_path: Path) -> None:
    results = dataclasses.replace(
        some_results(), multilingual=False, language_code="en", language="english", language_token="en"
    )
    assert "generate_kwargs" not in _card(tmp_path, results).text


def test_local_data_and_models_are_no_metadata_and_no_paths(tmp_path: Path) -> None:
    model = tmp_path / "home" / "maria" / "tiny-model"
    model.mkdir(parents=True)
    results = dataclasses.replace(
        some_results(),
        model=Source.of(str(model), revision="sha256:12ab"),
        dataset=Source.of(str(model.parent / "my clips.zip"), revision="sha256:34cd"),
    )
    card = _card(tmp_path, results)
    metadata = card.data.to_dict()
    assert not {"base_model", "datasets", "base_model_relation"} & set(metadata)
    dataset = metadata["model-index"][0]["results"][0]["dataset"]
    assert dataset["type"] == "my-clips.zip"
    assert "revision" not in dataset
    assert "tiny-model, fine-tuned on my clips.zip" in card.text
    assert "maria" not in card.content
    assert str(tmp_path) not in card.content
    assert "huggingface.co/tiny-model" not in card.content


@pytest.mark.parametrize(
    ("given", "token", "filed"),
    [
        ("it_it", "it", "it"),
        ("ita", "it", "it"),
        ("italian", "it", "it"),
        ("en_us", "en", "en"),
        ("zh-CN", "zh", "zh"),
        ("cmn_hans_cn", "zh", "zh"),
        ("nb_no", "no", "no"),
        ("fil_ph", "tl", "tl"),
        ("jw", "jw", "jv"),
        ("jv_id", "jw", "jv"),
        ("yue", "yue", "yue"),
    ],
)
def test_languages_that_whisper_knows_are_called_and_filed_as_what_they_are(
    tmp_path: Path, given: str, token: str, filed: str
) -> None:
    language = resolve_language(given, None)
    assert language.code == token
    results = dataclasses.replace(some_results(), language_code=given, language_token=token, language=language.name)
    card = _card(tmp_path, results)
    assert card.data.language == filed
    assert f"It transcribes speech in {language.name.capitalize()}. On the test split" in card.text
    assert "no token" not in card.text


@pytest.mark.parametrize(
    ("given", "told", "filed"),
    [("dv", "Sinhala", "dv"), ("ckb_iq", "Persian", "ckb"), ("dhivehi", "Sinhala", "dv")],
)
def test_a_language_that_whisper_lacks_is_filed_as_itself(tmp_path: Path, given: str, told: str, filed: str) -> None:
    language = resolve_language(given, told)
    results = dataclasses.replace(
        some_results(), language_code=given, language=language.name, language_token=language.code
    )
    card = _card(tmp_path, results)
    assert card.data.language == filed
    assert f"in `{given}`. Whisper has no token for that language, so the model is told {told} instead." in card.text


@pytest.mark.parametrize(
    ("given", "told", "filed"), [("it", "Spanish", "it"), ("clean", "English", "en"), ("ace_id", "Indonesian", "ace")]
)
def test_a_language_told_for_another_or_an_unknown_name_is_not_said_to_be_missing(
    tmp_path: Path, given: str, told: str, filed: str
) -> None:
    language = resolve_language(given, told)
    results = dataclasses.replace(
        some_results(), language_code=given, language=language.name, language_token=language.code
    )
    card = _card(tmp_path, results)
    assert card.data.language == filed
    assert f"in `{given}`. The model is told that it is {told}." in card.text
    assert "no token" not in card.text


def test_the_card_says_where_generation_was_cut_and_whether_the_base_was_measured(tmp_path: Path) -> None:
    results = some_results()
    results.hyperparameters["max_sequence_length"] = 225
    same_way = "The base model was measured in the same way on the same clips."
    measured = _card(tmp_path, results).text
    assert "cut at 1.5 times the tokens of the longest reference of a split, and at 225 tokens at most." in measured
    assert same_way in measured
    alone = {split: SplitScores(None, scores.tuned) for split, scores in results.splits.items()}
    assert "base model was measured" not in _card(tmp_path, dataclasses.replace(results, splits=alone)).text


def test_without_base_scores_without_rejections_without_curves(tmp_path: Path) -> None:
    results = some_results()
    tuned = results.splits["validation"].tuned
    results = dataclasses.replace(
        results, splits={"validation": SplitScores(None, tuned)}, rejected={}, language_token="zh"
    )
    card = _card(tmp_path, results)
    assert "| WER, normalised | – | 14.29 % | – |" in card.text
    assert "No clip was left out." in card.text
    assert "![" not in card.text
    assert "best on validation by CER" in card.text
    assert card.data.eval_results is not None
    assert {result.dataset_split for result in card.data.eval_results} == {"validation"}


def test_a_translation_is_english_text(tmp_path: Path) -> None:
    results = dataclasses.replace(
        some_results(), task="translate", language_code="zh", language="chinese", language_token="zh"
    )
    card = _card(tmp_path, results)
    assert "translates speech in Chinese into English" in card.text
    assert "best on validation by WER" in card.text
    assert '"task": "translate"' in card.text
