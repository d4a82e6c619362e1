"""Where artifacts live, and what a dataset or model is called in public."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

LIBRARY = "asr-fine-tuner"


@dataclass(frozen=True, slots=True)
class ArtifactHome:
    """The folder of one artifact name in the Hugging Face cache."""

    folder: Path

    @classmethod
    def of(cls, name: str) -> ArtifactHome:
        from huggingface_hub import cached_assets_path

        return cls(cached_assets_path(LIBRARY, namespace="artifacts", subfolder=name))

    @property
    def artifact(self) -> Path:
        """The finished artifact."""
        return self.folder / "artifact"

    @property
    def partial(self) -> Path:
        """An unfinished one: the artifact so far, and a record of each finished shard."""
        return self.folder / "partial"

    @property
    def lock(self) -> Path:
        return self.folder / "lock"


def public_name(name_or_path: str) -> str:
    """A Hub id as it is; of a local path only the last part, so that no path of this machine is published."""
    path = Path(name_or_path).expanduser()
    return path.resolve().name.removesuffix(".zip") if path.exists() else name_or_path
