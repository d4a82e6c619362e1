"""The parameters of both jobs: typed, validated when built, documented field by field.

The command line, the environment variables, `--help` and the tables in the README all come from these models.
"""

from __future__ import annotations

import os
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Task = Literal["transcribe", "translate"]
Switch = Literal["auto", "on", "off"]
Engine = Literal["local", "ray"]
Precision = Literal["auto", "bf16", "fp16", "fp32"]
Timestamps = Literal["mixed", "always", "never"]
LearningRateScheduler = Literal["linear", "cosine", "constant", "constant_with_warmup", "inverse_sqrt", "polynomial"]

# What the Hub accepts as a repository id, with or without the namespace.
REPO_ID = re.compile(r"(?=.{1,96}$)([A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*")

# An artifact in a dataset repository of the Hub, as huggingface_hub's file system writes such paths.
HUB_ARTIFACT = re.compile(r"hf://datasets/(?P<repo_id>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>.+))?")
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}")

PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def _parameter(meaning: str, unit: str = "", default: Any = ...) -> Any:
    return Field(default=default, description=meaning, json_schema_extra={"unit": unit})


class JobParameters(BaseModel):
    """What preprocess and train share: the model, the dataset, the language, the caps."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), use_attribute_docstrings=False)

    model_id: str = _parameter("Whisper checkpoint on the Hub, or a local folder", default="openai/whisper-small")
    model_revision: str | None = _parameter("branch, tag or commit of the model", default=None)
    dataset_revision: str | None = _parameter("branch, tag or commit of the dataset", default=None)
    artifact_name: str | None = _parameter(
        "name of the artifact in the Hugging Face cache, or hf://datasets/USER/NAME for one on the Hub; "
        "when not given, made of dataset, language and model",
        default=None,
    )
    language: str | None = _parameter(
        "language to train as, by Whisper's name (Italian); when not given, the one of language_code", default=None
    )
    task: Task = _parameter("transcribe in the language, or translate into English", default="transcribe")
    max_train_samples: PositiveInt | None = _parameter("read at most this many of the train split", "clips", None)
    max_eval_samples: PositiveInt | None = _parameter(
        "read at most this many of the validation split and of the test split each", "clips", None
    )
    seed: Annotated[int, Field(ge=0, lt=2**32)] = _parameter("seed of everything that is drawn by chance", default=42)
    grace_period: PositiveFloat = _parameter("end within this time after SIGTERM, with what is saved", "seconds", 25.0)

    @field_validator("model_id", "dataset_name", "artifact_name", "output_dir", mode="before", check_fields=False)
    @classmethod
    def _path_as_text(cls, value: object) -> object:
        if not isinstance(value, (str, os.PathLike)):
            return value
        # Not through Path: it would make the Hub's name `speech` of the folder `./speech`.
        return os.path.expanduser(os.fspath(value))  # noqa: PTH111

    @field_validator("model_id", "dataset_name", "language_code", "artifact_name", "language", check_fields=False)
    @classmethod
    def _not_blank(cls, value: str | None) -> str | None:
        if value is not None and not value.strip():
            raise ValueError("must not be blank")
        return value.strip() if value is not None else None

    @field_validator("artifact_name")
    @classmethod
    def _on_hub_as_a_dataset(cls, value: str | None) -> str | None:
        if value is not None and value.startswith("hf://") and not HUB_ARTIFACT.fullmatch(value):
            raise ValueError("must be hf://datasets/USER/NAME")
        return value


class PreprocessParameters(JobParameters):
    """Parameters of the preprocess job."""

    dataset_name: str = _parameter("dataset on the Hub (google/fleurs), or a local folder or .zip")
    language_code: str = _parameter("language of the subset to take, as a code or a config name (it, it_it)")
    audio_column: str | None = _parameter("column that holds the audio; found by its type when not given", default=None)
    text_column: str | None = _parameter(
        "column that holds the transcript; found by its name when not given", default=None
    )
    train_split: str | None = _parameter("source split to train on; found by its name; a+b joins two", default=None)
    validation_split: str | None = _parameter(
        "source split to select checkpoints on; when there is none, speakers are held out of train", default=None
    )
    test_split: str | None = _parameter(
        "source split for the final result; when there is none, speakers are held out of train", default=None
    )
    max_duration: PositiveFloat | None = _parameter(
        "reject longer clips; when not given, the window of the model (30 s)", "seconds", None
    )
    min_duration: Annotated[float, Field(ge=0, allow_inf_nan=False)] = _parameter(
        "reject shorter clips", "seconds", 0.1
    )
    num_workers: PositiveInt | None = _parameter(
        "processes that decode and extract features; when not given, one for each usable core; on Ray: shards at once",
        "processes",
        None,
    )
    engine: Engine = _parameter("encode on this machine, or on the Ray cluster of RAY_ADDRESS", default="local")
    shard_index: Annotated[int, Field(ge=0)] | None = _parameter(
        "number of the part of the shards that this job encodes, from 0; other jobs encode the other parts",
        default=None,
    )
    shard_count: PositiveInt | None = _parameter(
        "number of parts that the shards are divided into, one for each job; needs shard_index", "parts", None
    )
    max_rejected_fraction: Annotated[float, Field(ge=0, le=1)] = _parameter(
        "fail when more of the clips than this are rejected", "fraction of clips", 0.05
    )
    overwrite: bool = _parameter("replace a different artifact of the same name", default=False)
    grace_period: PositiveFloat = _parameter("end within this time after SIGTERM, with what is saved", "seconds", 10.0)

    @field_validator("artifact_name")
    @classmethod
    def _plain_name(cls, value: str | None) -> str | None:
        on_hub = HUB_ARTIFACT.fullmatch(value or "")
        if on_hub and on_hub["revision"]:
            raise ValueError("must have no revision: what is pushed becomes the newest")
        if value is not None and not on_hub and not _PLAIN_NAME.fullmatch(value):
            raise ValueError("must be letters, digits, '.', '_' and '-', begin with a letter or digit, at most 96 long")
        return value

    @model_validator(mode="after")
    def _durations_in_order(self) -> PreprocessParameters:
        if self.max_duration is not None and self.min_duration >= self.max_duration:
            raise ValueError(f"min_duration {self.min_duration} s must be below max_duration {self.max_duration} s")
        return self

    @model_validator(mode="after")
    def _a_part_of_how_many(self) -> PreprocessParameters:
        if (self.shard_index is None) != (self.shard_count is None):
            raise ValueError("shard_index and shard_count must be given together")
        if self.shard_index is not None and self.shard_count is not None and self.shard_index >= self.shard_count:
            raise ValueError(f"shard_index {self.shard_index} must be below shard_count {self.shard_count}")
        return self


class TrainParameters(JobParameters):
    """Parameters of the train job. Dataset, language and task default to what the artifact was made with."""

    dataset_name: str | None = _parameter("dataset the artifact has to come from; any when not given", default=None)
    language_code: str | None = _parameter("language code the artifact has to be of; any when not given", default=None)
    language: str | None = _parameter(
        "language the artifact has to be trained as, by Whisper's name; any when not given", default=None
    )
    task: Task | None = _parameter("task the artifact has to be for; any when not given", default=None)  # type: ignore[assignment]
    artifact_name: str | None = _parameter(
        "name of the artifact in the Hugging Face cache, its folder, or hf://datasets/USER/NAME[@REVISION]; when not "
        "given, made as in preprocess",
        default=None,
    )
    model_name: str | None = _parameter(
        "name to publish the model under (name, or organisation/name); when not given, made of model and language",
        default=None,
    )
    output_dir: str | None = _parameter(
        "folder for checkpoints and the finished model; outputs/<model_name> when not given", default=None
    )
    max_steps: PositiveInt = _parameter("optimizer steps to train", "steps", 5000)
    learning_rate: PositiveFloat = _parameter("peak learning rate", default=1e-5)
    lr_scheduler: LearningRateScheduler = _parameter(
        "course of the learning rate after warm-up; constant goes without", default="linear"
    )
    warmup_steps: Annotated[int, Field(ge=0)] = _parameter("steps until the peak learning rate", "steps", 500)
    train_batch_size: PositiveInt = _parameter(
        "clips of an optimizer step on one device; taken in smaller micro batches where memory asks for it", "clips", 16
    )
    grad_accum_steps: PositiveInt = _parameter("this many times the clips in an optimizer step", default=1)
    packing: Switch = _parameter(
        "train on several clips in one window of the model, and on two windows or more in a step; auto: when clips are "
        "so short that windows hold 1.5 of them or more",
        default="auto",
    )
    single_clip_share: Annotated[float, Field(ge=0, le=1)] = _parameter(
        "with packing, train on each clip in this share of the windows as if it was alone, and join those in others",
        "fraction of windows",
        0.75,
    )
    packed_timestamps: Timestamps = _parameter(
        "with packing, train to tell when each clip begins and ends, where they are joined: in half of the windows, "
        "always or never",
        default="mixed",
    )
    eval_batch_size: PositiveInt = _parameter("clips transcribed at once in evaluation", "clips", 8)
    max_sequence_length: Annotated[int, Field(gt=0, le=448)] = _parameter(
        "longest transcript that evaluation generates", "tokens", 255
    )
    logging_steps: PositiveInt = _parameter("log loss, learning rate and gradient norm this often", "steps", 25)
    eval_steps: PositiveInt = _parameter("evaluate on validation this often", "steps", 1000)
    save_steps: PositiveInt = _parameter("write a checkpoint to resume from this often", "steps", 1000)
    eval_subset: PositiveInt = _parameter(
        "evaluate on this many clips of validation while training; the best weights are scored on all at the end",
        "clips",
        500,
    )
    evaluate_base: bool = _parameter("evaluate the untouched base model too, so that gains can be told", default=True)
    early_stopping_patience: PositiveInt | None = _parameter(
        "stop after this many evaluations without a better one; never when not given", "evaluations", None
    )
    precision: Precision = _parameter(
        "arithmetic of training; auto: bf16 or fp16 on a GPU, fp32 on a CPU", default="auto"
    )
    gradient_checkpointing: Switch = _parameter(
        "recompute activations to save memory (20-33 % slower); auto: when memory would not hold them", default="auto"
    )
    freeze_encoder: bool = _parameter("train the decoder only", default=False)
    lora_rank: PositiveInt | None = _parameter(
        "train low-rank adapters of this rank (LoRA) instead of the weights, merged into them at the end; "
        "all weights when not given",
        default=None,
    )
    compile: bool = _parameter("compile the encoder with torch.compile before training on a GPU", default=False)
    spec_augment: bool = _parameter("mask random spans of time and mel bands while training", default=False)
    publish: bool = _parameter("upload the finished model to the Hub (needs HF_TOKEN)", default=False)
    private: bool = _parameter("publish as a private repository", default=False)
    resume: bool = _parameter("continue from the newest complete checkpoint in output_dir", default=True)

    @property
    def clips_in_a_step(self) -> int:
        """Of one process."""
        return self.train_batch_size * self.grad_accum_steps

    @field_validator("model_name")
    @classmethod
    def _repository_name(cls, value: str | None) -> str | None:
        if value is not None and (not REPO_ID.fullmatch(value) or "--" in value or ".." in value):
            raise ValueError("must be name or organisation/name of letters, digits, '.', '_' and single '-'")
        return value


class PreflightParameters(TrainParameters):
    """Parameters of the preflight: those of the train job that it looks ahead to."""


def default_artifact_name(model_id: str, dataset_name: str, language_code: str, task: str | None) -> str:
    """The artifact's name when none is given; both jobs derive the same one from the same parameters."""
    parts = [_last_part(dataset_name).removesuffix(".zip"), language_code, _last_part(model_id)]
    if task == "translate":
        parts.append(task)
    return "-".join(re.sub(r"[^\w.]+", "-", part).strip("-.") for part in parts)[:96]


def default_model_name(model_id: str, language_code: str) -> str:
    """The published model's name when none is given: `whisper-small-it`."""
    return re.sub(r"[^A-Za-z0-9_.]+", "-", f"{_last_part(model_id)}-{language_code}").strip("-.")[:96]


def _last_part(path_or_id: str) -> str:
    return path_or_id.rstrip("/").rsplit("/", 1)[-1] or "local"
