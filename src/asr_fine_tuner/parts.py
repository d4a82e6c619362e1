"""Several jobs that make one artifact at once, each a part of its shards, in one folder that all of them see.

The lock of the artifact's home keeps order: jobs that encode parts share it, and whoever begins, merges or makes the
whole artifact holds it alone. A part that has ended asks for it alone, and gets it when no other part is at work: so
the last one merges.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass

from asr_fine_tuner.artifact_place import begin
from asr_fine_tuner.artifact_request import ArtifactRequest
from asr_fine_tuner.files import LockHeld, exclusive, shared
from asr_fine_tuner.locations import ArtifactHome
from asr_fine_tuner.manifest import Manifest
from asr_fine_tuner.parameters import PreprocessParameters
from asr_fine_tuner.shards import ShardTask, WorkingFolder
from asr_fine_tuner.stop import raise_if_stopped

# Beginning and merging take seconds; a job that makes the whole artifact, or another one, takes longer.
_SECONDS_TO_WAIT = 60.0


@dataclass(frozen=True, slots=True)
class Part:
    """One of `count` runs of neighbouring shards, which often come from the same files."""

    index: int
    count: int

    @classmethod
    def asked_for(cls, parameters: PreprocessParameters) -> Part | None:
        """None when the job is to make the whole artifact."""
        if parameters.shard_index is None or parameters.shard_count is None:
            return None
        return cls(parameters.shard_index, parameters.shard_count)

    def of(self, tasks: list[ShardTask]) -> list[ShardTask]:
        """The tasks of this part: none where there are fewer shards than parts."""
        return tasks[self.index * len(tasks) // self.count : (self.index + 1) * len(tasks) // self.count]

    def __str__(self) -> str:
        return f"part {self.index} of {self.count}"


@contextlib.contextmanager
def joined(
    home: ArtifactHome, request: ArtifactRequest, part: Part, *, overwrite: bool
) -> Iterator[WorkingFolder | Manifest]:
    """Within the block the folder to work in beside other parts, which nobody moves or removes; or the finished
    artifact.

    Raises:
        LockHeld: another job makes the whole artifact, another one of the same name, or the same part.
        PermanentError: as `begin` does.
    """
    with contextlib.ExitStack() as locks:
        yield _joined(locks, home, request, part, overwrite=overwrite)


def _joined(
    locks: contextlib.ExitStack, home: ArtifactHome, request: ArtifactRequest, part: Part, *, overwrite: bool
) -> WorkingFolder | Manifest:
    what = f"artifact {home.name}"
    work, identity = WorkingFolder(home.partial), request.identity_of_work
    until = time.monotonic() + _SECONDS_TO_WAIT
    while True:
        try:
            locks.enter_context(shared(home.lock, what=what))
            if work.is_for(identity):
                break
            locks.close()
            with exclusive(home.lock, what=what):
                begun = begin(home, request, overwrite=overwrite)
                if isinstance(begun, Manifest):
                    return begun
        except LockHeld:
            if time.monotonic() > until:
                raise
            raise_if_stopped("finished shards are kept")
            # By chance, or parts that begin together would stand in each other's way together.
            time.sleep(random.uniform(0.05, 0.5))  # noqa: S311
    locks.enter_context(exclusive(home.partial / f"{part}.lock", what=f"{part} of {what}"))
    return work
