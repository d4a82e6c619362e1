"""Where SageMaker and Vertex AI collect what a train job leaves, which they tell in its environment."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from asr_fine_tuner.errors import PermanentError
from asr_fine_tuner.files import full_disk_explained

# Vertex AI shows every bucket that the job may use below this folder, through Cloud Storage FUSE:
# https://cloud.google.com/vertex-ai/docs/training/cloud-storage-file-system
_BUCKETS = Path("/gcs")


@dataclass(frozen=True, slots=True)
class PlatformFolders:
    """Folders that the platform keeps when the container is gone.

    runs: takes the place of `outputs`. The next attempt of the job finds it as this one left it.
    model: what lies here at the end is the model that the job has made.
    """

    runs: Path
    model: Path

    def collect(self, model: Path, names: Iterable[str]) -> None:
        """Copy the files `names` of the folder `model` to where the platform takes the job's model from.

        Raises:
            PermanentError: the disk is full.
        """
        self.model.mkdir(parents=True, exist_ok=True)
        with full_disk_explained(self.model):
            for name in names:
                (self.model / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(model / name, self.model / name)


def failure_file(environment: Mapping[str, str] = os.environ) -> Path | None:
    """Where SageMaker reads why a job failed, of which it shows the first 1024 characters; None on any other platform.

    https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-training-signal-success-failure.html
    """
    model = environment.get("SM_MODEL_DIR")
    return Path(model).parent / "output" / "failure" if model else None


def platform_folders(environment: Mapping[str, str] = os.environ, buckets: Path = _BUCKETS) -> PlatformFolders | None:
    """The folders of the platform that runs this job; None on any other.

    buckets: where the buckets of Cloud Storage can be seen as folders.

    Raises:
        PermanentError: Vertex AI names a bucket that cannot be seen.
    """
    if model := environment.get("SM_MODEL_DIR"):
        # /opt/ml/model and /opt/ml/checkpoints; the second has no variable of its own:
        # https://docs.aws.amazon.com/sagemaker/latest/dg/model-train-storage.html
        return PlatformFolders(runs=Path(model).parent / "checkpoints", model=Path(model))
    given = [environment.get(name) for name in ("AIP_CHECKPOINT_DIR", "AIP_MODEL_DIR")]
    if all(given):
        runs, model_folder = (_seen_at(str(place), buckets) for place in given)
        return PlatformFolders(runs, model_folder)
    return None


def _seen_at(place: str, buckets: Path) -> Path:
    """The folder of `gs://BUCKET/PATH`; any other place is a path already."""
    if not place.startswith("gs://"):
        return Path(place)
    folder = buckets / place.removeprefix("gs://")
    bucket = buckets / folder.relative_to(buckets).parts[0]
    if not bucket.is_dir():
        raise PermanentError(
            given=f"{place} as the folder of Vertex AI, and no {bucket}",
            expected=f"the buckets of Cloud Storage below {buckets}, as in a job of Vertex AI",
            action="let the job's service account use the bucket, or give --output_dir",
        )
    return folder
