"""The model card: what the published model is, how to use it, what it was made of, and how well it does."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from asr_fine_tuner.checkpoint_files import CARD_FILE
from asr_fine_tuner.evaluation import GENERATED_PER_REFERENCE_TOKEN
from asr_fine_tuner.files import write_atomically
from asr_fine_tuner.languages import iso_code, names_a_language, whisper_code
from asr_fine_tuner.metrics import METRICS
from asr_fine_tuner.results import METRIC_NAMES, Source, TrainingResults, percent, relative_change

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData

_PUBLISHED_METRICS = {"wer": "wer", "wer_whisper": "wer", "cer": "cer"}
"""The rates of the model index -> the Hub's names of metrics."""


def write_model_card(
    folder: Path,
    results: TrainingResults,
    *,
    repo_id: str | None = None,
    licence: str | None = None,
    curves: str | None = None,
) -> Path:
    """Write `README.md` into a model's folder and return its path.

    Only what `results` holds is told, so neither paths nor names of this machine or of its user.

    repo_id: where the model will be published; the model's name when not given.
    licence: the base model's, as the Hub writes it (`apache-2.0`); the tuned model is under the same.
    curves: file name of the picture of training curves in `folder`.
    """
    from huggingface_hub import ModelCard

    metadata = card_metadata(results, licence=licence)
    body = _body(results, repo_id or results.model_name, curves)
    # Reading the card back validates it: the model index is parsed into results again.
    card = ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n{body}")
    path = folder / CARD_FILE
    write_atomically(path, str(card))
    return path


def card_metadata(results: TrainingResults, *, licence: str | None = None) -> ModelCardData:
    """What the Hub files the model under; only what others can load is named as base model or dataset."""
    from huggingface_hub import ModelCardData

    return ModelCardData(
        language=_iso_language(results),
        license=licence,
        library_name="transformers",
        pipeline_tag="automatic-speech-recognition",
        tags=["automatic-speech-recognition", "whisper", "hf-asr-leaderboard", "asr-fine-tuner"],
        base_model=results.model.id if results.model.on_hub else None,
        base_model_relation="finetune" if results.model.on_hub else None,
        datasets=[results.dataset.id] if results.dataset.on_hub else None,
        metrics=["wer", "cer"],
        model_name=results.model_name,
        eval_results=_model_index(results),
    )


def _model_index(results: TrainingResults) -> list[EvalResult]:
    """Of the test split, which selected nothing; of validation where there is no test split."""
    from huggingface_hub import EvalResult

    split = "test" if "test" in results.splits else "validation"
    rates = results.splits[split].tuned.rates()
    dataset = results.dataset
    return [
        EvalResult(
            task_type="automatic-speech-recognition",
            task_name="Automatic Speech Recognition",
            dataset_type=dataset.id if dataset.on_hub else re.sub(r"[^\w.-]+", "-", dataset.id),
            dataset_name=dataset.id,
            dataset_config=dataset.config,
            dataset_split=results.data[split].source_split,
            dataset_revision=dataset.revision if dataset.on_hub else None,
            dataset_args={"language": results.language_code},
            metric_type=kind,
            metric_name=METRIC_NAMES[metric],
            metric_value=round(100 * rates[metric], 2),
        )
        for metric, kind in _PUBLISHED_METRICS.items()
        if metric in rates
    ]


def _iso_language(results: TrainingResults) -> str | None:
    """Of the language that is spoken, which is not the one that stands in for it."""
    return iso_code(results.language_code) or iso_code(results.language_token)


def _body(results: TrainingResults, repo_id: str, curves: str | None) -> str:
    sections = [
        f"# {results.model_name}",
        _introduction(results),
        "## Results",
        _results(results),
        "## How to use it",
        _usage(results, repo_id),
        "## Training data",
        _training_data(results),
        "## Training",
        _training(results, curves),
        "## How the error rates are measured",
        _measurement(results),
        "## Limits",
        _limits(results),
        "## Versions",
        ", ".join(f"{name} {version}" for name, version in results.versions.items()),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _introduction(results: TrainingResults) -> str:
    told_language = results.language.capitalize()
    theirs = whisper_code(results.language_code)
    spoken = told_language if theirs == results.language_token else f"`{results.language_code}`"
    told = f"It transcribes speech in {spoken}."
    if results.task == "translate":
        told = f"It translates speech in {spoken} into English."
    if theirs is None and names_a_language(results.language_code):
        told += f" Whisper has no token for that language, so the model is told {told_language} instead."
    elif theirs != results.language_token:
        told += f" The model is told that it is {told_language}."
    base = results.model.id
    if results.model.on_hub:
        base = f"[{base}](https://huggingface.co/{base})"
    return f"{base}, fine-tuned on {_link(results.dataset)}. {told}{_headline(results)}"


def _link(dataset: Source) -> str:
    config = f" (`{dataset.config}`)" if dataset.config else ""
    if dataset.on_hub:
        return f"[{dataset.id}](https://huggingface.co/datasets/{dataset.id}){config}"
    return f"{dataset.id}{config}, a dataset that is not on the Hub"


def _headline(results: TrainingResults) -> str:
    metric = results.leading_metric
    scores = results.splits.get("test")
    if scores is None or metric not in scores.tuned.rates():
        return ""
    base = scores.base.rates().get(metric) if scores.base else None
    against = "" if base is None else f", that of the base model {percent(base)}"
    return f" On the test split its normalised {metric.upper()} is {percent(scores.tuned.rates()[metric])}{against}."


def _results(results: TrainingResults) -> str:
    tables = [f"**Do not prefer it to its base model: {results.warning}.**"] if results.warning else []
    for split, scores in sorted(results.splits.items()):
        base = scores.base.rates() if scores.base else {}
        tuned = scores.tuned.rates()
        role = "which the checkpoint was selected on" if split == "validation" else "which nothing was selected on"
        tables += [
            f"**{split.capitalize()}**, {role} ({scores.tuned.clips:,} clips, {results.data[split].hours:.2f} h):",
            _table(
                ("", "base", "this model", "relative change"),
                (
                    (
                        METRIC_NAMES[metric],
                        percent(base.get(metric)),
                        percent(tuned.get(metric)),
                        relative_change(base.get(metric), tuned.get(metric)),
                    )
                    for metric in METRICS
                ),
                align=("---", "---:", "---:", "---:"),
            ),
        ]
    return "\n\n".join(tables)


def _usage(results: TrainingResults, repo_id: str) -> str:
    options = ""
    if results.multilingual:
        options = f', generate_kwargs={{"language": "{results.language}", "task": "{results.task}"}}'
    return f"""```python
from transformers import pipeline

recognise = pipeline("automatic-speech-recognition", model="{repo_id}")
print(recognise("speech.wav"{options})["text"])
```

Give `chunk_length_s=30` to `pipeline` for recordings longer than 30 s. Files are decoded by ffmpeg.
{_adapter(results, repo_id)}""".rstrip()


def _adapter(results: TrainingResults, repo_id: str) -> str:
    """How to put the adapters into the base model, where some were trained."""
    rank = results.hyperparameters.get("lora_rank")
    if rank is None:
        return ""
    base = f'WhisperForConditionalGeneration.from_pretrained("{results.model.id}")'
    return (
        f"\nThese are the base model's weights with adapters of rank {rank} (LoRA) merged into them. `adapter/` has "
        f'the adapters alone: `PeftModel.from_pretrained({base}, "{repo_id}", subfolder="adapter")`.'
    )


def _training_data(results: TrainingResults) -> str:
    rows = [(name, data.source_split, f"{data.clips:,}", f"{data.hours:.2f}") for name, data in results.data.items()]
    table = _table(("split", "taken from", "clips", "hours"), rows, align=("---", "---", "---:", "---:"))
    revision = f" at revision `{results.dataset.revision}`" if results.dataset.revision else ""
    if results.rejected:
        reasons = ", ".join(
            f"{reason.replace('_', ' ')} {clips:,}" for reason, clips in sorted(results.rejected.items())
        )
        rejected = f" Left out: {sum(results.rejected.values()):,} clips ({reasons})."
    else:
        rejected = " No clip was left out."
    return f"{_link(results.dataset)}{revision}.{rejected}\n\n{table}"


def _training(results: TrainingResults, curves: str | None) -> str:
    base = f"`{results.model.id}`" + (f" at revision `{results.model.revision}`" if results.model.revision else "")
    told = (
        f"Started from {base}. {results.steps:,} optimizer steps ({results.epochs:.2f} epochs) in "
        f"{_duration(results.train_runtime)}; the weights are those of step {results.best_step:,}, "
        f"the best on validation by {METRIC_NAMES[results.leading_metric]}."
    )
    rows = [(f"`{name}`", _shown(value)) for name, value in results.hyperparameters.items()]
    picture = f"![Loss, error rates and learning rate over training steps]({curves})" if curves else ""
    parts = (told, results.throughput.told(), picture, _table(("hyperparameter", "value"), rows))
    return "\n\n".join(part for part in parts if part)


def _measurement(results: TrainingResults) -> str:
    spaces = "; spaces are not counted, for the language does not write them between words"
    return "\n".join(
        (
            "Errors are substitutions, insertions and deletions, summed over all clips of a split and divided by the "
            "words (WER) or Unicode characters (CER) of all references, with "
            "[jiwer](https://github.com/jitsi/jiwer). A rate can exceed 100 %.",
            "",
            "- **Normalised**: NFKC, lower case, punctuation and symbols replaced by spaces. Combining marks stay, "
            f"for many scripts write vowels with them{spaces if results.leading_metric == 'cer' else ''}.",
            "- **As written**: with casing and punctuation.",
            "- **Whisper's normalisation**: with the normaliser of the "
            "[Whisper paper](https://arxiv.org/abs/2212.04356), comparable to published figures of Whisper models. "
            "It takes words with combining marks apart.",
            "",
            "The text is the most likely token at each step (greedy search), without timestamps. " + _cut(results),
        )
    )


def _cut(results: TrainingResults) -> str:
    """Where generation ends if the model does not, and whether that held for the base model too."""
    longest = results.hyperparameters.get("max_sequence_length")
    told = (
        f"Generation was cut at {GENERATED_PER_REFERENCE_TOKEN:g} times the tokens of the longest reference of a split"
        + (f", and at {longest:,} tokens at most." if isinstance(longest, int) else ".")
    )
    if all(scores.base for scores in results.splits.values()):
        told += " The base model was measured in the same way on the same clips."
    return told


def _limits(results: TrainingResults) -> str:
    packed = results.hyperparameters.get("clips_per_window", 1) != 1
    apart = results.hyperparameters.get("single_clip_share") if packed else 1
    limits = [
        f"Measured on {results.dataset.id} only: expect more errors with other accents, microphones, noise and "
        "subjects.",
        f"Trained on {_heard(apart)}: on long recordings, in timestamps and in other languages it may do worse than "
        "the base model.",
        "Like every Whisper model it can write fluent text where there is silence, noise or music.",
    ]
    if results.task == "translate":
        limits.append("WER and CER say less about translations than about transcripts.")
    return "\n".join(f"- {limit}" for limit in limits)


def _heard(apart: object) -> str:
    """apart: share of the windows whose clips were kept apart."""
    if apart == 1:
        return "single clips without timestamps"
    return "clips that were joined" if apart == 0 else "single clips, and on some that were joined"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], align: Sequence[str] = ()) -> str:
    lines = [header, align or ("---",) * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _shown(value: str | float | bool | None) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    minutes, rest = divmod(rest, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
