"""From encoded shards to a finished artifact: rejections checked, splits tied together, the manifest written last."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from asr_fine_tuner.artifact import SPLITS, write_dataset_metadata
from asr_fine_tuner.artifact_request import ArtifactRequest, recorded_versions
from asr_fine_tuner.errors import PermanentError
from asr_fine_tuner.files import hashes_below, write_atomically
from asr_fine_tuner.manifest import MANIFEST_NAME, Manifest, SplitSummary
from asr_fine_tuner.shards import ShardFile, WorkingFolder

REJECTED_NAME = "rejected.jsonl"


def assemble(work: WorkingFolder, request: ArtifactRequest, *, max_rejected_fraction: float) -> Manifest:
    """Check rejections, then write what ties the shards together, the manifest last.

    Raises:
        PermanentError: too much was rejected, or a split is left without clips.
    """
    plan = request.plan
    work.remove_leftovers()
    records = [work.record(index) for index in range(len(plan.shards))]
    rejected = [rejection for record in records for rejection in record.rejected]
    lines = (json.dumps(rejection.model_dump(), ensure_ascii=False) + "\n" for rejection in rejected)
    write_atomically(work.artifact / REJECTED_NAME, "".join(lines))
    files = {split: [record.files[split] for record in records if split in record.files] for split in SPLITS}
    splits = {split: _summarised(of_split) for split, of_split in files.items()}
    reasons = dict(sorted(Counter(rejection.reason for rejection in rejected).items()))
    refuse_too_many_rejected(work.artifact, splits, reasons, max_rejected_fraction)
    for split, summary in splits.items():
        if summary.clips == 0:
            raise PermanentError(
                given=f"no clip in the {split} split ({plan.sources.get(split, 'no source')})",
                expected="at least one clip in each of train, validation and test",
                action=f"raise the caps, or see in {work.artifact / REJECTED_NAME} why clips were rejected",
            )
    names = {split: [file.name for file in of_split] for split, of_split in files.items()}
    write_dataset_metadata(work.artifact, names, request.model.n_mels, request.identity)
    known = {f"{split}/{file.name}": file.sha256 for split, of_split in files.items() for file in of_split}
    manifest = Manifest(
        model=request.model,
        dataset=request.origin,
        encoding=request.encoding,
        splits=splits,
        rejected=reasons,
        versions=recorded_versions(),
        files=hashes_below(work.artifact, known),
    )
    write_atomically(work.artifact / MANIFEST_NAME, manifest.to_json())
    return manifest


def refuse_too_many_rejected(
    artifact: Path, splits: Mapping[str, SplitSummary], rejected: Mapping[str, int], at_most: float
) -> None:
    """
    artifact: folder that holds `rejected.jsonl`. rejected: clips by reason. at_most: fraction of all clips.

    Raises:
        PermanentError: more of the clips are rejected; says how many, why, and the first of them.
    """
    n_rejected = sum(rejected.values())
    total = n_rejected + sum(summary.clips for summary in splits.values())
    if n_rejected <= at_most * total:
        return
    listed = artifact / REJECTED_NAME
    with listed.open(encoding="utf-8") as lines:
        first = json.loads(next(lines))
    counted = ", ".join(f"{reason} {count}" for reason, count in Counter(rejected).most_common())
    raise PermanentError(
        given=f"{n_rejected} of {total} clips are rejected: {counted}; first {first['id']}: {first['detail']}",
        expected=f"at most {100 * at_most:g} % (--max_rejected_fraction {at_most:g})",
        action=f"read {listed} and mend the data, or allow more; encoded clips are kept for that",
    )


def _summarised(files: Sequence[ShardFile]) -> SplitSummary:
    return SplitSummary(
        clips=sum(file.clips for file in files),
        hours=round(sum(file.seconds for file in files) / 3600, 6),
        longest_labels=max((file.longest_labels for file in files), default=0),
    )
