"""The weights that did best where training is evaluated, kept beside the checkpoints in a folder `best-STEP`."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from asr_fine_tuner.checkpoints import checkpoints_in, is_complete, sealed, step_of
from asr_fine_tuner.evaluation import Evaluation

_EVALUATION_NAME = "evaluation.json"


class BestWeights:
    """Of all weights offered, those with the lowest leading metric; of equals the first."""

    def __init__(self, run_dir: Path, leading_metric: str, weight_bytes: int) -> None:
        """weight_bytes: that it takes to keep some."""
        self._run_dir = run_dir
        self._leading_metric = leading_metric
        self._weight_bytes = weight_bytes
        self._kept: tuple[Path, float] | None = None

    def offer(self, step: int, evaluation: Evaluation, save: Callable[[Path], None]) -> None:
        """Keep the weights of `step`, which `save` writes to a folder, when they are better than those kept."""
        rate = self._rate(evaluation)
        before = self._kept or self._found()
        if before is not None and before[1] <= rate:
            self._kept = before
            return
        folder = self._run_dir / f"best-{step}"
        with sealed(folder, self._weight_bytes) as staging:
            save(staging)
            evaluation.write(staging / _EVALUATION_NAME)
        if before is not None and before[0] != folder:
            shutil.rmtree(before[0])
        self._kept = folder, rate

    def verified(self) -> tuple[Path, Evaluation] | None:
        """The folder of the weights kept, after its files were verified, and how they did; None when there is none."""
        complete = [folder for folder in checkpoints_in(self._run_dir, "best") if is_complete(folder)]
        assessed = [(folder, Evaluation.read(folder / _EVALUATION_NAME)) for folder in complete]
        return min(assessed, key=lambda pair: (self._rate(pair[1]), step_of(pair[0])), default=None)

    def _found(self) -> tuple[Path, float] | None:
        """What an earlier session kept."""
        best = self.verified()
        return (best[0], self._rate(best[1])) if best else None

    def _rate(self, evaluation: Evaluation) -> float:
        return float(getattr(evaluation.scores, self._leading_metric).rate)
