"""The preprocess job: dataset -> examples -> clips with features and labels -> artifact."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from asr_fine_tuner import hub
from asr_fine_tuner.artifact import SPLITS
from asr_fine_tuner.artifact_assembly import assemble, refuse_too_many_rejected
from asr_fine_tuner.artifact_place import begin, move_into_place
from asr_fine_tuner.artifact_repository import ArtifactRepository
from asr_fine_tuner.artifact_request import ArtifactRequest, resolve_request
from asr_fine_tuner.artifact_size import check_room
from asr_fine_tuner.engines import encode_missing
from asr_fine_tuner.files import LockHeld, exclusive, mismatches
from asr_fine_tuner.locations import ArtifactHome
from asr_fine_tuner.manifest import Manifest, SplitSummary
from asr_fine_tuner.parameters import PreprocessParameters, default_artifact_name
from asr_fine_tuner.parts import Part, joined
from asr_fine_tuner.quiet import quiet_libraries
from asr_fine_tuner.shards import ShardTask, WorkingFolder
from asr_fine_tuner.summary import show_artifact

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PreprocessResult:
    """What the preprocess job made.

    artifact: its folder. sha256: hash of its manifest. reused: it was there already, made from the same input.
    url: of the repository on the Hub that it was pushed to; None without one.
    bytes_fetched: bytes of the dataset that came over the network in this run; 0 when all came from the cache.
    """

    artifact: Path
    artifact_name: str
    sha256: str
    reused: bool
    url: str | None
    splits: Mapping[str, SplitSummary]
    rejected: Mapping[str, int]
    bytes_fetched: int
    artifact_bytes: int

    def as_json(self) -> dict[str, object]:
        splits = {split: summary.model_dump() for split, summary in self.splits.items()}
        return {**asdict(self), "artifact": str(self.artifact), "splits": splits, "rejected": dict(self.rejected)}


@dataclass(frozen=True, slots=True)
class PartResult:
    """What a job did that was given a `shard_index`, when other parts of the artifact are still to be done.

    shards_of_part: shards of this part, all of which are done. shards_done, shards: of the whole artifact.
    """

    artifact_name: str
    shard_index: int
    shard_count: int
    shards_of_part: int
    shards_done: int
    shards: int
    bytes_fetched: int

    def as_json(self) -> dict[str, object]:
        return {"status": "part_done", **asdict(self)}


@quiet_libraries()
def preprocess(parameters: PreprocessParameters) -> PreprocessResult | PartResult:
    """Turn a speech dataset into the artifact that `train` reads.

    The artifact is a folder in the Hugging Face cache (or wherever HF_HOME points) that `datasets.load_from_disk`
    opens: splits train, validation and test with one row per clip, `features` log-mel float16 `[n_frames, n_mels]`
    (100 frames per second, real frames only), `labels` int32 `[n_labels]`, `seconds`, `text`, `id`, `speaker`; beside
    them `manifest.json` and `rejected.jsonl`.

    With a `shard_index` only that part of the shards is encoded. The result is a PartResult, and a PreprocessResult
    of the job that finds all shards done: it merges them.

    With more than one worker this starts processes that import the caller's main module: call it under
    `if __name__ == "__main__":`, or set num_workers to 1.

    Raises:
        PermanentError: the dataset, language, model or clips do not fit; says what was given and what to do.
        TransientError: the Hub or the Ray cluster cannot be reached, or another job is writing the same artifact.
        InterruptedJob: SIGTERM or SIGINT; finished shards are kept and the next call continues.
    """
    name = parameters.artifact_name or default_artifact_name(
        parameters.model_id, parameters.dataset_name, parameters.language_code, parameters.task
    )
    repository = ArtifactRepository.named(name)
    if repository:
        repository.claim()
    request = resolve_request(parameters)
    job = _Job(parameters, request, ArtifactHome.of(name), repository)
    if repository and not parameters.overwrite and (there := repository.manifest()):
        if there.identity != request.identity:
            raise request.name_is_taken(name, there)
        if not job.home.artifact.is_dir():
            folder = repository.pulled()
            if not (problems := mismatches(folder, there.files)):
                return job.reuse(folder, there)
            logger.warning("artifact %s is damaged (%s) and is made anew", name, "; ".join(problems))
    part = Part.asked_for(parameters)
    return job.make_whole() if part is None else job.make_part(part)


@dataclass(frozen=True, slots=True)
class _Job:
    parameters: PreprocessParameters
    request: ArtifactRequest
    home: ArtifactHome
    repository: ArtifactRepository | None

    def make_whole(self) -> PreprocessResult:
        with exclusive(self.home.lock, what=f"artifact {self.home.name}"):
            begun = begin(self.home, self.request, overwrite=self.parameters.overwrite)
            bytes_fetched = self._encode(self.request.tasks(begun)) if isinstance(begun, WorkingFolder) else 0
            return self._finish(begun, bytes_fetched)

    def make_part(self, part: Part) -> PreprocessResult | PartResult:
        n_shards = len(self.request.plan.shards)
        tasks = part.of(self.request.tasks(WorkingFolder(self.home.partial)))
        bytes_fetched, shards_done = 0, n_shards
        with joined(self.home, self.request, part, overwrite=self.parameters.overwrite) as begun:
            if isinstance(begun, WorkingFolder):
                bytes_fetched, shards_done = self._encode(tasks), begun.n_recorded()
        told = PartResult(
            artifact_name=self.home.name,
            shard_index=part.index,
            shard_count=part.count,
            shards_of_part=len(tasks),
            shards_done=shards_done,
            shards=n_shards,
            bytes_fetched=bytes_fetched + self.request.bytes_fetched,
        )
        try:
            with exclusive(self.home.lock, what=f"artifact {self.home.name}"):
                if isinstance(begun, WorkingFolder) and not begun.is_for(self.request.identity_of_work):
                    begun = begin(self.home, self.request, overwrite=False)  # another part has merged meanwhile
                if isinstance(begun, WorkingFolder) and begun.n_recorded() < n_shards:
                    self._say_what_is_left(told, alone=True)
                    return told
                return self._finish(begun, bytes_fetched)
        except LockHeld:  # another part is at work, and the last one merges
            self._say_what_is_left(told, alone=False)
            return told

    def _say_what_is_left(self, told: PartResult, *, alone: bool) -> None:
        """alone: no other part is at work in the same folder."""
        done, folder = f"{told.shards_done} of {told.shards} shards are done", self.home.folder
        if self.repository and alone and told.shards_done == told.shards_of_part:
            logger.warning(
                "%s, and no other part has worked in %s: parts need HF_HOME on one volume that all of them see, also "
                "when the artifact goes to the Hub; on machines that share none nobody merges and nothing is pushed",
                done,
                folder,
            )
        else:
            logger.info("%s in %s; the part that ends last merges", done, folder)

    def _encode(self, tasks: Sequence[ShardTask]) -> int:
        """Encode those that are not there yet; returns the bytes fetched."""

        def look_for_room(missing: Sequence[ShardTask]) -> None:
            plans = [task.plan for task in missing]
            check_room(plans, self.request.settings, self.request.model, self.home.partial, hub.cache_folder())

        return encode_missing(tasks, self.parameters.engine, self.parameters.num_workers, look_for_room)

    def _finish(self, begun: WorkingFolder | Manifest, bytes_fetched: int) -> PreprocessResult:
        """Merge the shards, unless that was done before, and push. The caller holds the home's lock alone."""
        if isinstance(begun, Manifest):
            result = self.reuse(self.home.artifact, begun)
        else:
            manifest = assemble(begun, self.request, max_rejected_fraction=self.parameters.max_rejected_fraction)
            move_into_place(begun, self.home)
            result = self._result(self.home.artifact, manifest, reused=False, bytes_fetched=bytes_fetched)
        if self.repository:
            self.repository.push(self.home.artifact)
        return result

    def reuse(self, artifact: Path, manifest: Manifest) -> PreprocessResult:
        """
        Raises:
            PermanentError: more of the clips are rejected in it than is allowed now.
        """
        allowed = self.parameters.max_rejected_fraction
        refuse_too_many_rejected(artifact, manifest.splits, manifest.rejected, allowed)
        logger.info("artifact %s is there already, made from the same input", self.home.name)
        return self._result(artifact, manifest, reused=True, bytes_fetched=0)

    def _result(self, artifact: Path, manifest: Manifest, *, reused: bool, bytes_fetched: int) -> PreprocessResult:
        bytes_fetched += self.request.bytes_fetched
        artifact_bytes = sum(path.stat().st_size for path in artifact.rglob("*") if path.is_file())
        show_artifact(artifact, manifest, self.request.plan.columns, artifact_bytes, bytes_fetched)
        return PreprocessResult(
            artifact=artifact,
            artifact_name=self.home.name,
            sha256=manifest.sha256,
            reused=reused,
            url=self.repository.url if self.repository else None,
            splits={split: manifest.splits[split] for split in SPLITS},
            rejected=manifest.rejected,
            bytes_fetched=bytes_fetched,
            artifact_bytes=artifact_bytes,
        )
