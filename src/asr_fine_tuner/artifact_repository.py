"""An artifact in a private dataset repository on the Hub, for machines that share no volume."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from asr_fine_tuner import hub
from asr_fine_tuner.artifact import SPLITS
from asr_fine_tuner.artifact_assembly import REJECTED_NAME
from asr_fine_tuner.errors import PermanentError
from asr_fine_tuner.locations import ArtifactHome
from asr_fine_tuner.manifest import MANIFEST_NAME, Manifest, read_manifest
from asr_fine_tuner.parameters import HUB_ARTIFACT

logger = logging.getLogger(__name__)

# All that is fetched of a repository, whatever else is in it.
_FETCHED = (MANIFEST_NAME, REJECTED_NAME, "dataset_dict.json", *(f"{split}/*" for split in SPLITS))


@dataclass(frozen=True, slots=True)
class ArtifactRepository:
    """name: hf://datasets/USER/NAME[@REVISION]."""

    name: str
    repo_id: str
    revision: str | None

    @classmethod
    def named(cls, artifact_name: str) -> ArtifactRepository | None:
        """None when the name is not one of an artifact on the Hub."""
        found = HUB_ARTIFACT.fullmatch(artifact_name)
        return cls(artifact_name, found["repo_id"], found["revision"]) if found else None

    def claim(self) -> None:
        """Make sure that HF_TOKEN may write to the repository, which is created where it does not exist, and that it
        is private and for an artifact.

        Raises PermanentError where that is not so, TransientError while the Hub cannot be reached.
        """
        hub.check_write_access(self.repo_id, private=True, kind=hub.ARTIFACT)
        names = hub.artifact_files(self.repo_id)
        if names and MANIFEST_NAME not in names:
            raise PermanentError(
                given=f"--artifact_name {self.name}, a dataset that holds {', '.join(sorted(names)[:3])} "
                f"and no {MANIFEST_NAME}",
                expected="an empty repository, one with an artifact, or a new name",
                action="give another --artifact_name",
            )

    def manifest(self) -> Manifest | None:
        """That of the artifact which the repository holds now, if it holds one."""
        if MANIFEST_NAME not in hub.artifact_files(self.repo_id):
            return None
        return read_manifest(hub.download_artifact(self.repo_id, None, [MANIFEST_NAME]))

    @property
    def url(self) -> str:
        """The page for people."""
        return hub.dataset_page(self.repo_id)

    def push(self, artifact: Path) -> None:
        """Upload the files of the manifest and the manifest itself as one commit, unless the repository has them, and
        compare what arrived.

        Raises PermanentError where HF_TOKEN may not write, TransientError where the Hub cannot be reached or a file did
        not arrive as it is here: the same job then uploads without encoding again.
        """
        files = read_manifest(artifact).files
        uploaded = hub.upload_artifact(artifact, self.repo_id, {**files, MANIFEST_NAME: None})
        logger.info("artifact %s is at %s, commit %s", self.name, uploaded.url, uploaded.commit)

    def pulled(self) -> Path:
        """The folder of the artifact: where the preprocess job has left the same one here, else in the Hub's cache.

        Raises PermanentError where it is missing or may not be read, TransientError while the Hub cannot be reached.
        """
        folder = hub.download_artifact(self.repo_id, self.revision, [MANIFEST_NAME])
        here = ArtifactHome.of(self.name.partition("@")[0]).artifact
        manifests = [path / MANIFEST_NAME for path in (folder, here)]
        if all(path.is_file() for path in manifests) and manifests[0].read_bytes() == manifests[1].read_bytes():
            return here
        return hub.download_artifact(self.repo_id, self.revision, _FETCHED)
