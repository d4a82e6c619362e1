"""The preflight: what a train job would fail with after hours, found in minutes."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from asr_fine_tuner import hub
from asr_fine_tuner.artifact import SPLITS
from asr_fine_tuner.checklist import Checklist, Found, NotChecked, needed
from asr_fine_tuner.checkpoints import step_of
from asr_fine_tuner.dataset import resolve_dataset
from asr_fine_tuner.disk import bytes_below, existing_parent, free_bytes, readable_size, shortage
from asr_fine_tuner.encoding import model_format
from asr_fine_tuner.errors import InterruptedJob, PermanentError
from asr_fine_tuner.files import exclusive
from asr_fine_tuner.labels import LabelEncoder
from asr_fine_tuner.launch import launch_of
from asr_fine_tuner.locations import public_name
from asr_fine_tuner.manifest import ModelFormat
from asr_fine_tuner.memory import MemoryPlan, outline, plan_memory
from asr_fine_tuner.packing import Packer
from asr_fine_tuner.parameters import TrainParameters, default_model_name
from asr_fine_tuner.preflight_report import CHECKS, PreflightReport
from asr_fine_tuner.quiet import quiet_libraries
from asr_fine_tuner.rehearsal import Pace, rehearse
from asr_fine_tuner.run_folder import RunFolder
from asr_fine_tuner.run_size import DiskEstimate, transcript_bytes
from asr_fine_tuner.step_division import StepLoad
from asr_fine_tuner.tracking import check_tracking
from asr_fine_tuner.training import run_folder, run_identity
from asr_fine_tuner.training_input import TrainingInput, check_fits, open_artifact
from asr_fine_tuner.windows import plan_windows

# A job waits ten minutes for a Hub that is down; whoever waits for a preflight wants to know now.
_HUB_PATIENCE_SECONDS = "20"


@quiet_libraries()
def preflight(parameters: TrainParameters, free: Callable[[Path], int] = free_bytes) -> PreflightReport:
    """Check whatever a train job with these parameters needs, then rehearse it on a few clips.

    Nothing is published, tracked, or left in the output folder. What is downloaded stays in the cache for the job,
    and with `publish` the repository is created on the Hub where it does not exist, which is how the right to write is
    found out. A failed check is no exception: see `exit_code` of the report.

    free: bytes free on the volume of a path.

    Raises:
        PermanentError: it was started as one of several processes.
    """
    if (processes := launch_of(os.environ).processes) > 1:
        raise PermanentError(
            given=f"a preflight in {processes} processes",
            expected="one process: it finds what each of the job's would",
            action="run python -m jobs.preflight by itself, without torchrun or accelerate launch",
        )
    os.environ.setdefault("HUB_PATIENCE_SECONDS", _HUB_PATIENCE_SECONDS)
    examination = _Examination(parameters, free)
    try:
        examination.run()
    except InterruptedJob as error:
        examination.checks.leave(error, "interrupted")
    finally:
        examination.checks.show()
    return examination.report()


@dataclass(frozen=True, slots=True)
class _Model:
    files: hub.ModelFiles
    format: ModelFormat
    to_fetch: hub.WeightsToFetch


@dataclass(frozen=True, slots=True)
class _Fitting:
    """An artifact that fits the model, and the windows that the job would train on."""

    source: TrainingInput
    packer: Packer


@dataclass(frozen=True, slots=True)
class _Run:
    folder: RunFolder
    steps_done: int
    finished: bool


class _Examination:
    """The checks in their order; each one keeps what it found for those after it."""

    def __init__(self, parameters: TrainParameters, free: Callable[[Path], int]) -> None:
        self.parameters = parameters
        self.checks = Checklist(CHECKS)
        self._free = free
        self._model: _Model | None = None
        self._source: TrainingInput | None = None
        self._fitting: _Fitting | None = None
        self._run: _Run | None = None
        self._disk: DiskEstimate | None = None
        self._memory: MemoryPlan | None = None
        self._weights: Path | None = None
        self._pace: Pace | None = None

    def run(self) -> None:
        check = self.checks.run
        check("parameters", self._check_parameters)
        check("Hub token", self._check_token)
        check("tracking", lambda: Found(check_tracking(), None))
        self._model = check("model", self._check_model)
        self._source = check("artifact", self._check_artifact)
        check("dataset", self._check_dataset)
        self._fitting = check("fit", self._check_fit)
        check("publishing", self._check_publishing)
        self._run = check("output folder", self._check_output_folder)
        self._disk = check("disk", self._check_disk)
        self._memory = check("memory", self._check_memory)
        self._weights = check("weights", self._check_weights)
        self._pace = check("rehearsal", self._check_rehearsal)

    def report(self) -> PreflightReport:
        return PreflightReport(
            self.checks,
            disk_bytes=self._disk.job if self._disk else None,
            memory=self._memory,
            pace=self._pace,
            job_seconds=self._job_seconds(self._pace) if self._pace else None,
        )

    def _check_parameters(self) -> Found[None]:
        asked = self.parameters
        steps = f"{asked.max_steps} steps of {asked.clips_in_a_step} clips"
        return Found(f"{steps}, evaluated every {asked.eval_steps}", None)

    def _check_token(self) -> Found[None]:
        whose = hub.whose_token()
        return Found(f"HF_TOKEN of {whose}" if whose else "no HF_TOKEN; public models need none", None)

    def _check_model(self) -> Found[_Model]:
        asked = self.parameters
        files = hub.download_model(asked.model_id, asked.model_revision, weights=False)
        made_of = model_format(public_name(asked.model_id), files.revision, files.folder)
        to_fetch = hub.weights_to_fetch(asked.model_id, files)
        weights = f"{readable_size(to_fetch.n_bytes)} of weights to download" if to_fetch.n_bytes else "weights here"
        return Found(f"{made_of.model_id} at {made_of.revision}, {weights}", _Model(files, made_of, to_fetch))

    def _check_artifact(self) -> Found[TrainingInput]:
        source = open_artifact(self.parameters)
        splits = ", ".join(f"{split} {summary.clips} clips" for split, summary in source.manifest.splits.items())
        return Found(f"{source.folder} is as it was written: {splits}", source)

    def _check_dataset(self) -> Found[None]:
        asked = self.parameters
        if self._source is not None:
            dataset = self._source.manifest.dataset
            return Found(f"the artifact has what is needed of {dataset.id} at {dataset.revision}", None)
        if asked.dataset_name is None or asked.language_code is None:
            raise NotChecked("needs the artifact, or --dataset_name and --language_code")
        found = resolve_dataset(asked.dataset_name, language_code=asked.language_code, revision=asked.dataset_revision)
        splits = ", ".join(f"{split} of {'+'.join(names) or 'train'}" for split, names in found.splits.items())
        return Found(f"{found.name} ({found.config}): {splits}; text in {found.columns.text}", None)

    def _check_fit(self) -> Found[_Fitting]:
        source, model = needed(self._source, "the artifact"), needed(self._model, "the model")
        check_fits(source.manifest, model.format)
        encoding = source.manifest.encoding
        labels = LabelEncoder.from_folder(model.files.folder, encoding.language_token, encoding.task)
        asked, made_for = self.parameters, source.manifest.model
        packer = plan_windows(source.clips("train"), labels, made_for, asked, asked.clips_in_a_step)
        return Found("features and labels of the artifact are those of the model", _Fitting(source, packer))

    def _check_publishing(self) -> Found[None]:
        if not self.parameters.publish:
            raise NotChecked("--publish is false")
        repo_id = hub.check_write_access(self._model_name(), private=self.parameters.private)
        return Found(f"HF_TOKEN may write to {repo_id}", None)

    def _check_output_folder(self) -> Found[_Run]:
        run = run_folder(self.parameters, self._model_name())
        _refuse_unwritable(run.folder)
        if run.lock.is_file():
            with exclusive(run.lock, what=f"output folder {run.folder}"):
                pass
        if self._fitting is None or self._model is None:
            return Found(f"{run.folder} can be written; what run it holds was not checked", _Run(run, 0, False))
        identity = run_identity(self._fitting.source.manifest, self._model.format, self.parameters)
        run.check(identity, resume=self.parameters.resume)
        if run.is_finished():
            return Found(f"{run.model} is finished; the job would only publish it", _Run(run, 0, True))
        checkpoint = run.checkpoint()
        if checkpoint is None:
            return Found(f"{run.folder} is free for this run", _Run(run, 0, False))
        return Found(f"the job would continue from {checkpoint}", _Run(run, step_of(checkpoint), False))

    def _check_disk(self) -> Found[DiskEstimate]:
        model, run = needed(self._model, "the model"), self._unfinished()
        estimate = DiskEstimate.of(outline(model.files.folder, self.parameters), transcript_bytes(self._source))
        here = run.folder.folder
        wanted = max(0, estimate.job - bytes_below(here))
        download, cache = model.to_fetch.n_bytes, model.to_fetch.folder
        told = f"{readable_size(wanted)} for checkpoints and models, {readable_size(download)} to download"
        if short := shortage([(here, wanted), (cache, download)], self._free):
            raise PermanentError(
                given=f"{readable_size(short.free)} free at {short.folder}",
                expected=f"{readable_size(short.needed)}: {told}",
                action="free space, or point --output_dir or HF_HOME at a larger volume",
            )
        return Found(f"{told}; {readable_size(self._free(here))} free at {here}", estimate)

    def _check_memory(self) -> Found[MemoryPlan]:
        model = needed(self._model, "the model")
        self._unfinished()
        shapes = outline(model.files.folder, self.parameters)
        if self._fitting is None:
            plan = plan_memory(self.parameters, shapes)
        else:
            load = StepLoad.of(self._fitting.packer, self.parameters.clips_in_a_step)
            plan = plan_memory(load.at_once(self.parameters), shapes, load.labels)
        return Found(f"{plan.device.device}: {plan}", plan)

    def _check_weights(self) -> Found[Path]:
        self._unfinished()
        needed(self._fitting, "an artifact that fits the model")
        needed(self._disk, "room for them")
        # The branch that was asked for can have moved since it was looked up.
        revision = needed(self._model, "the model").files.revision
        files = hub.download_model(self.parameters.model_id, revision, weights=True)
        return Found(f"safetensors in {files.folder}", files.folder)

    def _check_rehearsal(self) -> Found[Pace]:
        run, disk = self._unfinished(), needed(self._disk, "room on the disk")
        fitting = needed(self._fitting, "an artifact that fits the model")
        weights = needed(self._weights, "the weights")
        needed(self._memory, "enough memory")
        here = existing_parent(run.folder.folder)
        if disk.rehearsal > self._free(here):
            raise NotChecked(f"needs {readable_size(disk.rehearsal)} free at {here}")
        pace = rehearse(fitting.source, fitting.packer, weights, self.parameters, here)
        smaller = f" with up to {pace.micro_batch} windows at once"
        return Found(
            "trained, evaluated, saved, resumed and reloaded"
            f"{smaller if pace.micro_batch < self.parameters.train_batch_size else ''}; {pace.step:.2f} s a step, "
            f"{pace.evaluation_batch:.2f} s to evaluate a batch, {pace.checkpoint:.2f} s to write a checkpoint: "
            f"{_duration(self._job_seconds(pace, run))} for the job at this pace; "
            f"{readable_size(pace.peak_memory)} of memory",
            pace,
        )

    def _job_seconds(self, pace: Pace, run: _Run | None = None) -> float:
        run, fitting = run or needed(self._run, "the output folder"), needed(self._fitting, "the artifact")
        clips = {split: len(fitting.source.clips(split)) for split in SPLITS}
        return pace.job_seconds(self.parameters, clips, run.steps_done)

    def _unfinished(self) -> _Run:
        run = needed(self._run, "the output folder")
        if run.finished:
            raise NotChecked("the model is finished")
        return run

    def _model_name(self) -> str:
        name, code = self.parameters.model_name, self.parameters.language_code
        if name is not None:
            return name
        if code is None:
            code = needed(self._source, "the artifact, or --model_name").manifest.encoding.language_code
        return default_model_name(self.parameters.model_id, code)


def _refuse_unwritable(folder: Path) -> None:
    nearest = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise PermanentError(
            given=f"--output_dir {folder}, where {nearest} is a file",
            expected="a folder, or a place for one",
            action="give another --output_dir",
        )
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise PermanentError(
            given=f"--output_dir {folder}, where {nearest} cannot be written",
            expected="a folder that this user may write to",
            action="give another --output_dir, or the right to write there",
        )


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min" if minutes else f"{seconds:.0f} s"
    return f"{minutes // 60} h {minutes % 60} min"
