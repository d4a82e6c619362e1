"""The output folder of a train job: what run it belongs to, and where each thing lies in it."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from asr_fine_tuner.checkpoints import checkpoints_in, is_complete, newest_complete, step_of
from asr_fine_tuner.errors import PermanentError
from asr_fine_tuner.evaluation import Evaluation
from asr_fine_tuner.files import canonical_json, sha256_of_json, sync_folder, write_atomically

if TYPE_CHECKING:
    from transformers import TrainerState

Identity = Mapping[str, str | int | float | bool | None]
# The parts of an identity that together make the clips of an optimizer step.
BATCH = ("train_batch_size", "grad_accum_steps", "processes")


@dataclass(frozen=True, slots=True)
class FittedBatch:
    """A micro batch that the device holds, of so many clips."""

    train_batch_size: int
    gradient_checkpointing: bool


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Checkpoints, evaluations and the finished model of one run."""

    folder: Path

    @property
    def model(self) -> Path:
        """The finished model, complete or absent."""
        return self.folder / "model"

    @property
    def trained(self) -> Path:
        """The trainer's state when the last step was done."""
        return self.folder / "trained.json"

    @property
    def _fitted(self) -> Path:
        return self.folder / "fitted_batch.json"

    @property
    def _identity(self) -> Path:
        return self.folder / "run.json"

    @property
    def _evaluations(self) -> Path:
        return self.folder / "evaluations"

    @property
    def lock(self) -> Path:
        return self.folder / "lock"

    def fitted(self) -> FittedBatch | None:
        """What fitted the memory when the given batch did not; None when it did."""
        return FittedBatch(**json.loads(self._fitted.read_text(encoding="utf-8"))) if self._fitted.is_file() else None

    def keep_fitted(self, fitted: FittedBatch) -> None:
        write_atomically(self._fitted, canonical_json(asdict(fitted)))

    def keep_state(self, state: TrainerState) -> None:
        """Write `trained`: from now on a rerun only evaluates and finishes."""
        staged = self.trained.with_name(f".{self.trained.name}.tmp")
        state.save_to_json(str(staged))
        staged.replace(self.trained)
        sync_folder(self.folder)

    def is_finished(self) -> bool:
        return self.model.is_dir() and is_complete(self.model)

    def _has_results(self) -> bool:
        """Whether a run has come further than to find its parameters wrong."""
        made = (self.trained, self.model, self._evaluations)
        return bool(checkpoints_in(self.folder)) or any(path.exists() for path in (*made, *self.folder.glob("best-*")))

    def check(self, identity: Identity, *, resume: bool) -> Identity:
        """Look, without writing, whether this folder is free for the run `identity` or belongs to it.

        Returns the identity of the run: with the batch that it was begun with, when it continues with the same clips
        to a step in other micro batches, or with the same parameters on another number of processes.

        Raises:
            PermanentError: it holds another run, or `resume` is off and it holds one at all.
        """
        path = self._identity
        if not path.is_file():
            if checkpoints_in(self.folder):
                raise self._taken("checkpoints of an unknown run")
            return identity
        if not self._has_results():
            return identity
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            raise self._taken(f"an unreadable {path.name}") from None
        identity = _with_the_batch_of(found, identity)
        differences = [
            f"{name} {found.get(name)!r} rather than {identity.get(name)!r}"
            for name in sorted({*found, *identity})
            if found.get(name) != identity.get(name)
        ]
        if differences:
            raise self._taken(f"a run with {', '.join(differences)}")
        if not resume:
            raise self._taken("this run already, and --resume is false")
        return identity

    def claim(self, identity: Identity, *, resume: bool) -> Identity:
        """Make this the folder of the run `identity`, or check that it is. Needs the lock. Returns as `check`.

        Raises:
            PermanentError: as `check`.
        """
        identity = self.check(identity, resume=resume)
        self._remove_leftovers()
        record = canonical_json(dict(identity))
        if not self._identity.is_file() or self._identity.read_text(encoding="utf-8") != record:
            self._fitted.unlink(missing_ok=True)
            write_atomically(self._identity, record)
        return identity

    def _remove_leftovers(self) -> None:
        """Remove what a killed job was staging: a checkpoint that nobody finishes takes the room of one."""
        places = (self.folder, self.model, self._evaluations)
        for staged in [path for place in places for path in (*place.glob(".*.tmp"), *place.glob(".*.tmp.parent"))]:
            shutil.rmtree(staged) if staged.is_dir() else staged.unlink()

    def checkpoint(self) -> Path | None:
        """The newest complete checkpoint.

        Raises:
            PermanentError: there are checkpoints and none of them is complete.
        """
        newest = newest_complete(self.folder)
        if newest is None and (found := checkpoints_in(self.folder)):
            raise PermanentError(
                given=f"{self.folder}: none of {len(found)} checkpoints is complete, up to step {step_of(found[0])}",
                expected="a checkpoint whose files are as they were written",
                action="move them away to start anew, or restore one from a copy",
            )
        return newest

    def evaluation(self, name: str) -> Evaluation | None:
        """The evaluation that is kept under `name`."""
        path = self._evaluations / f"{name}.json"
        return Evaluation.read(path) if path.is_file() else None

    def keep_evaluation(self, name: str, evaluation: Evaluation) -> None:
        evaluation.write(self._evaluations / f"{name}.json")

    def _taken(self, held: str) -> PermanentError:
        return PermanentError(
            given=f"--output_dir {self.folder}, which holds {held}",
            expected="an empty folder, or the same run to continue",
            action="give another --output_dir, or the parameters of that run to continue it",
        )


def effective_batch(identity: Identity) -> int:
    """Clips in an optimizer step of the run."""
    return math.prod(int(identity[name] or 0) for name in BATCH)


def _with_the_batch_of(begun: Identity, identity: Identity) -> Identity:
    if not {*BATCH} <= begun.keys():
        return identity
    same_parameters = all(begun[name] == identity[name] for name in BATCH if name != "processes")
    if same_parameters or effective_batch(begun) == effective_batch(identity):
        return {**identity, **{name: begun[name] for name in BATCH}}
    return identity


def run_id(identity: Identity, folder: Path) -> str:
    """An id that the same job in the same folder has again, so that a continued job continues its tracked run."""
    return sha256_of_json([dict(identity), str(folder.resolve())])[:16]
