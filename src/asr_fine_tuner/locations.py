"""Where artifacts live, and what a dataset or model is called in public."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from asr_fine_tuner.parameters import REPO_ID

LIBRARY = "asr-fine-tuner"


@dataclass(frozen=True, slots=True)
class ArtifactHome:
    """The folder of one artifact name in the Hugging Face cache."""

    name: str
    folder: Path

    @classmethod
    def of(cls, name: str) -> ArtifactHome:
        """name: as --artifact_name has it; that of one on the Hub stands for its copy here."""
        from huggingface_hub import cached_assets_path

        folder = name.removeprefix("hf://").replace("/", "--")  # datasets--USER--NAME, as the Hub's cache calls it
        return cls(name, cached_assets_path(LIBRARY, namespace="artifacts", subfolder=folder))

    @property
    def artifact(self) -> Path:
        """The finished artifact."""
        return self.folder / "artifact"

    @property
    def partial(self) -> Path:
        """An unfinished one: the artifact so far, and a record of each finished shard."""
        return self.folder / "partial"

    @property
    def replaced(self) -> Path:
        """The artifact that a new one takes the place of, while it does."""
        return self.folder / "replaced"

    @property
    def lock(self) -> Path:
        return self.folder / "lock"


def is_on_hub(name_or_path: str) -> bool:
    """Whether a name is read from the Hub: what exists here under it is what is read, as in `from_pretrained`."""
    return bool(REPO_ID.fullmatch(name_or_path)) and not Path(name_or_path).exists()


def public_name(name_or_path: str) -> str:
    """A Hub id as it is; of a local path only the last part, so that no path of this machine is published."""
    return name_or_path if is_on_hub(name_or_path) else Path(name_or_path).expanduser().resolve().name
