"""The command line as people use it: help, flags, environment, `.env`, and what mistakes are answered with."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from asr_fine_tuner.command_line import parameters_from, read_parameters
from asr_fine_tuner.errors import PermanentError
from asr_fine_tuner.parameters import JobParameters, PreprocessParameters, TrainParameters

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from conftest import RunJob

KINDS: dict[str, type[JobParameters]] = {"preprocess": PreprocessParameters, "train": TrainParameters}
REQUIRED = ("--dataset_name", "google/fleurs", "--language_code", "it")


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty working folder; what a `.env` there puts into the environment goes again."""
    monkeypatch.chdir(tmp_path)
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def preprocess_parameters(*argv: str) -> PreprocessParameters:
    return read_parameters(PreprocessParameters, "python -m jobs.preprocess", [*REQUIRED, *argv])


def train_parameters(*argv: str) -> TrainParameters:
    return read_parameters(TrainParameters, "python -m jobs.train", argv)


def refused(*argv: str, job: str = "preprocess") -> PermanentError:
    with pytest.raises(PermanentError) as caught:
        (preprocess_parameters if job == "preprocess" else train_parameters)(*argv)
    return caught.value


def documented(help_text: str) -> dict[str, tuple[str, str, str]]:
    """Flag -> type, meaning, and what is in brackets (unit and default), as `--help` shows them."""
    flat = " ".join(help_text.split())
    entries = re.findall(r"(--[a-z_]+) (\S+) ((?:(?! --[a-z_]+ ).)+?) \[([^\[\]]+)\](?= --| Each)", flat)
    return {flag: (kind.strip("[]"), meaning, brackets) for flag, kind, meaning, brackets in entries}


@pytest.mark.parametrize("job", KINDS)
def test_help_shows_type_default_unit_and_meaning_of_every_parameter(job: str, run_job: RunJob) -> None:
    run = run_job(job, "--help")
    assert (run.returncode, run.stderr) == (0, "")
    shown = documented(run.stdout)
    assert set(shown) == {f"--{name}" for name in KINDS[job].model_fields}
    for flag, (kind, meaning, brackets) in shown.items():
        assert re.fullmatch(r"TEXT|INT|FLOAT|[a-z0-9_]+(\|[a-z0-9_]+)+", kind), flag
        assert len(meaning.split()) >= 2, flag
        assert re.fullmatch(r"([a-z ]+; )?default: \S+|required", brackets), flag
    assert shown["--max_train_samples"][2] == "clips; default: none"
    assert "HF_TOKEN" in run.stdout
    assert "75 transient" in run.stdout


@pytest.mark.parametrize("job", KINDS)
def test_the_command_line_is_the_frozen_one(job: str, run_job: RunJob, request: pytest.FixtureRequest) -> None:
    """People's scripts depend on it. A change on purpose also changes the file, and is told in the changelog."""
    shown = documented(run_job(job, "--help").stdout)
    now = [f"{flag} {kind} [{brackets}]" for flag, (kind, _, brackets) in sorted(shown.items())]
    frozen = (request.config.rootpath / "tests" / "command_line" / f"{job}.txt").read_text(encoding="utf-8")
    assert now == frozen.splitlines()


@pytest.mark.parametrize("job", KINDS)
def test_help_imports_no_heavy_library(job: str, job_env: dict[str, str]) -> None:
    """`--help` takes a fifth of a second, and one of these seconds."""
    script = f"""
import runpy, sys
sys.argv = ["jobs.{job}", "--help"]
try:
    runpy.run_module("jobs.{job}", run_name="__main__")
finally:
    heavy = ["torch", "transformers", "datasets", "evaluate", "huggingface_hub", "librosa", "av", "wandb", "matplotlib",
             "pyarrow", "numpy", "soundfile", "accelerate", "jiwer"]
    print(sorted(set(heavy) & set(sys.modules)), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", script], env=job_env, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"usage: python -m jobs.{job}")
    assert done.stderr.strip() == "[]"


class TestPrecedence:
    def test_flags_over_environment_over_dotenv(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / ".env").write_text("ASR_SEED=1\nASR_MAX_EVAL_SAMPLES=10\nASR_TASK=translate\n")
        monkeypatch.setenv("ASR_SEED", "2")
        monkeypatch.setenv("ASR_MAX_EVAL_SAMPLES", "20")
        parameters = preprocess_parameters("--seed", "3")
        assert (parameters.seed, parameters.max_eval_samples, parameters.task) == (3, 20, "translate")

    def test_required_parameters_may_come_from_anywhere(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / ".env").write_text("ASR_DATASET_NAME=google/fleurs\n")
        monkeypatch.setenv("ASR_LANGUAGE_CODE", "it")
        parameters = read_parameters(PreprocessParameters, "job", [])
        assert (parameters.dataset_name, parameters.language_code) == ("google/fleurs", "it")

    def test_an_empty_variable_is_not_given(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ASR_MAX_TRAIN_SAMPLES", "")
        assert preprocess_parameters().max_train_samples is None

    def test_a_flag_takes_back_what_the_environment_gives(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ASR_MAX_TRAIN_SAMPLES", "5")
        assert preprocess_parameters("--max_train_samples", "none").max_train_samples is None

    def test_one_dotenv_serves_both_jobs(self, tmp_path: Path) -> None:
        (tmp_path / ".env").write_text("ASR_MAX_STEPS=7\nASR_NUM_WORKERS=3\n")
        assert preprocess_parameters().num_workers == 3
        assert train_parameters().max_steps == 7

    def test_tokens_in_dotenv_reach_the_libraries(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WANDB_API_KEY", "of the environment")
        (tmp_path / ".env").write_text("HF_TOKEN=hf_fromdotenv\nWANDB_API_KEY=of the file\n")
        preprocess_parameters()
        assert (os.environ["HF_TOKEN"], os.environ["WANDB_API_KEY"]) == ("hf_fromdotenv", "of the environment")


@pytest.mark.parametrize(
    "argv",
    [
        ("--max_train_samples", "100"),
        ("--max-train-samples", "100"),
        ("--max_train_samples=100",),
        ("--max-train-samples=100",),
        ("--max_train-samples", "100"),
        ("--max_train_samples", "5", "--max-train-samples", "100"),
    ],
)
def test_spellings_of_a_flag(argv: tuple[str, ...]) -> None:
    assert preprocess_parameters(*argv).max_train_samples == 100


@pytest.mark.parametrize(
    ("argv", "overwrite"),
    [((), False), (("--overwrite",), True), (("--overwrite", "true"), True), (("--overwrite=false",), False)],
)
def test_spellings_of_a_switch(argv: tuple[str, ...], overwrite: bool) -> None:
    assert preprocess_parameters(*argv).overwrite is overwrite


def test_a_value_may_hold_dashes() -> None:
    assert train_parameters("--model-name", "my-org/my-model").model_name == "my-org/my-model"


class TestUnknownNames:
    @pytest.mark.parametrize("flag", ["--max_train_sample", "--max-train-sampels", "--maxtrainsamples"])
    def test_the_nearest_flag_is_named(self, flag: str) -> None:
        error = refused(flag, "5")
        assert flag.lstrip("-").replace("-", "_") in error.given
        assert error.expected == "--max_train_samples"

    def test_nothing_is_near(self) -> None:
        assert "--help" in refused("--zzzzzz", "5").expected

    def test_a_prefix_is_no_flag(self) -> None:
        assert refused("--max_train", "5").expected == "--max_train_samples"
        assert refused("--dataset", "x").expected == "--dataset_name"

    @pytest.mark.parametrize(
        ("flag", "job", "other"), [("--max_steps", "preprocess", "train"), ("--text-column", "train", "preprocess")]
    )
    def test_a_parameter_of_the_other_job(self, flag: str, job: str, other: str) -> None:
        assert f"jobs.{other}" in refused(flag, "5", job=job).action

    @pytest.mark.parametrize("name", ["ASR_MAX_TRAIN_SAMPLE", "asr_max_train_sample"])
    def test_the_nearest_variable_is_named(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(name, "5")
        error = refused()
        assert (error.given, error.expected) == (
            f"the environment variable {name}, which names no parameter",
            "ASR_MAX_TRAIN_SAMPLES",
        )

    def test_the_nearest_line_of_dotenv_is_named(self, tmp_path: Path) -> None:
        (tmp_path / ".env").write_text("HF_HOME=/somewhere\nASR_LANGUAGECODE=it\n")
        error = refused()
        assert (error.given, error.expected) == (
            "the line in .env ASR_LANGUAGECODE, which names no parameter",
            "ASR_LANGUAGE_CODE",
        )

    @pytest.mark.parametrize(
        "name", ["ASR_PORT", "ASR_SERVICE_HOST", "ASR_SERVICE_PORT_HTTP", "ASR_PORT_80_TCP", "ASR_PORT_80_TCP_ADDR"]
    )
    def test_what_kubernetes_injects_for_a_service_is_passed_over(
        self, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(name, "tcp://10.0.0.1:80")
        assert preprocess_parameters().seed == 42

    @pytest.mark.parametrize("name", ["ASR_PORTS", "ASR_SERVICES"])
    def test_what_only_resembles_it_is_refused(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(name, "5")
        assert "names no parameter" in refused().given

    @pytest.mark.parametrize("argv", [("google/fleurs",), ("--seed",), ("-x", "1")])
    def test_what_is_no_pair_of_flag_and_value(self, argv: tuple[str, ...]) -> None:
        assert refused(*argv).expected == "--PARAMETER VALUE pairs"


@pytest.mark.parametrize(
    "argv", [("--hf_token", "abcsecret"), ("--HF-TOKEN=abcsecret",), ("--wandb_api_key=abcsecret",)]
)
def test_tokens_are_no_flags_and_are_not_repeated(argv: tuple[str, ...]) -> None:
    error = refused(*argv)
    assert "environment variable" in error.expected
    assert "abcsecret" not in str(error)


class TestInvalidValues:
    def test_a_flag(self) -> None:
        error = refused("--max_train_samples", "many")
        assert error.given == "--max_train_samples: 'many'"
        assert "integer" in error.expected

    def test_a_variable(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ASR_TASK", "transcript")
        error = refused()
        assert (error.given, error.expected) == ("ASR_TASK: 'transcript'", "'transcribe' or 'translate'")

    def test_a_line_of_dotenv(self, tmp_path: Path) -> None:
        (tmp_path / ".env").write_text("ASR_SEED=-1\n")
        assert refused().given == "ASR_SEED in .env: '-1'"

    def test_all_are_told_at_once(self) -> None:
        error = refused("--seed", "-1", "--num_workers", "0")
        assert "--seed: '-1'; --num_workers: '0'" in error.given or "--num_workers: '0'; --seed: '-1'" in error.given

    def test_values_that_do_not_go_together(self) -> None:
        error = refused("--min_duration", "5", "--max_duration", "2")
        assert error.expected == "min_duration 5.0 s must be below max_duration 2.0 s"

    def test_what_is_missing(self) -> None:
        with pytest.raises(PermanentError) as caught:
            read_parameters(PreprocessParameters, "job", [])
        assert caught.value.given == "no dataset_name; no language_code"
        assert "--language_code TEXT" in caught.value.expected


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"max_step": 3}, ("unknown parameter max_step", "--max_steps")),
        ({"overwrite": True}, ("unknown parameter overwrite", "a parameter of this job")),
        ({"hf_token": "x"}, ("hf_token as a parameter", "HF_TOKEN")),
        ({"max_steps": "many"}, ("--max_steps: 'many'", "a valid integer")),
    ],
)
def test_parameters_by_name_are_refused_as_flags_are(given: dict[str, object], told: tuple[str, str]) -> None:
    with pytest.raises(PermanentError) as caught:
        parameters_from(TrainParameters, given)
    assert told[0] in caught.value.given
    assert told[1] in caught.value.expected


def test_parameters_by_name_come_from_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASR_MAX_STEPS", "7")
    given = parameters_from(TrainParameters, {"learning_rate": "2e-5", "artifact_name": None})
    assert (given.max_steps, given.learning_rate, given.artifact_name) == (5000, 2e-5, None)
