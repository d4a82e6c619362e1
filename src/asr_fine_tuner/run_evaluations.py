"""What a run evaluates, and the evaluations that it keeps in its folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from asr_fine_tuner.artifact import ArtifactSplit
from asr_fine_tuner.batches import ClipDataset
from asr_fine_tuner.evaluation import Evaluation
from asr_fine_tuner.parameters import TrainParameters
from asr_fine_tuner.ranks import Ranks
from asr_fine_tuner.run_folder import RunFolder

_SUBSET = "validation-subset"


class RunEvaluations:
    """Evaluations of a run beside those that its trainer makes at each `eval_steps`; one that was interrupted is made
    up for by the next session, and one that was finished is not made again."""

    def __init__(
        self, run: RunFolder, clips: Mapping[str, ArtifactSplit], parameters: TrainParameters, ranks: Ranks
    ) -> None:
        self._run, self._clips, self._ranks = run, clips, ranks
        self._at_most, self._seed = parameters.eval_subset, parameters.seed
        self._seconds: dict[str, float] = {}

    @property
    def while_training(self) -> str:
        """What is evaluated while training: the validation split, or part of it."""
        return "validation" if len(self._clips["validation"]) <= self._at_most else _SUBSET

    def clips(self, what: str) -> ClipDataset:
        """Of a split, or of the part of validation that is evaluated while training: the same in all runs of a seed."""
        if what != _SUBSET:
            return ClipDataset(self._clips[what], longest_first=True)
        return ClipDataset(self._clips["validation"], longest_first=True, at_most=self._at_most, seed=self._seed)

    def kept(self, name: str, assess: Callable[[], Evaluation]) -> Evaluation:
        """The evaluation kept under `name`, or else that of `assess`, which is kept."""
        evaluation = self._ranks.from_first(lambda: self._run.evaluation(name))
        if evaluation is None:
            made = evaluation = assess()
            self._ranks.from_first(lambda: self._run.keep_evaluation(name, made))
        self._seconds[name] = evaluation.seconds
        return evaluation

    @property
    def seconds(self) -> float:
        """That those which were asked for took, in whichever session."""
        return sum(self._seconds.values())
