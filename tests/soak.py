"""Both jobs killed at random moments until they finish: `python -m tests.soak` (`make soak`).

In each round a preprocess job and a train job are started again and again. SIGKILL or SIGTERM comes after a time drawn
by chance, up to what an undisturbed job takes; the last attempt is left alone. The artifact's files and the final
weights have to be those of the undisturbed jobs, each time.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "demo"
_SIGNALS = (signal.SIGKILL, signal.SIGTERM)
_INTERRUPTED = 143
_DISTURBED_ATTEMPTS = 6


@dataclass(frozen=True)
class Jobs:
    """The two jobs of a round, in a folder of their own. What is trained on is the artifact in `artifact`."""

    folder: Path
    artifact: Path
    steps: int
    workers: int = 2

    def parameters(self, job: str) -> dict[str, object]:
        caps = {"model_id": DEMO / "model", "max_train_samples": 24, "max_eval_samples": 6}
        if job == "preprocess":
            return {
                **caps,
                "dataset_name": DEMO / "dataset",
                "language_code": "it",
                "artifact_name": "soak",
                "num_workers": self.workers,
            }
        return {
            **caps,
            "artifact_name": self.artifact,
            "output_dir": self.folder / "run",
            "max_steps": self.steps,
            "warmup_steps": 1,
            "train_batch_size": 4,
            "eval_steps": 2,
            "save_steps": 1,
            "logging_steps": 1,
            "evaluate_base": "false",
            "max_sequence_length": 12,
        }

    @property
    def environment(self) -> dict[str, str]:
        return {"HF_HOME": str(self.folder / "hf"), "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"}

    def run(self, job: str, signal_after: float | None = None, number: int = signal.SIGKILL) -> int:
        """Exit code of a job that gets the signal `number` after so many seconds, if it has not ended by then."""
        flags = [f"--{name}={value}" for name, value in self.parameters(job).items()]
        environment = {**os.environ, **self.environment, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        with (self.folder / f"{job}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", f"jobs.{job}", *flags], cwd=self.folder, env=environment, stdout=log, stderr=log
            )
        if signal_after is not None:
            try:
                return process.wait(signal_after)
            except subprocess.TimeoutExpired:
                process.send_signal(number)
        return process.wait(120)

    @property
    def made(self) -> Path:
        return self.folder / "hf" / "assets" / "asr-fine-tuner" / "artifacts" / "soak" / "artifact"

    def outcome(self) -> dict[str, bytes]:
        """What has to be the same each time: the artifact's files, the weights, and the transcripts of the test."""
        files = {path.relative_to(self.folder).as_posix(): path for path in self.made.rglob("*") if path.is_file()}
        model = self.folder / "run" / "model"
        files |= {name: model / name for name in ("model.safetensors", "predictions.jsonl")}
        return {name: path.read_bytes() for name, path in files.items()}


def undisturbed(jobs: Jobs) -> dict[str, float]:
    """Run the jobs to compare with. Returns how many seconds each took."""
    seconds = {}
    for job in ("preprocess", "train"):
        began = time.monotonic()
        if code := jobs.run(job):
            raise RuntimeError(f"{job} ended with {code} undisturbed; see {jobs.folder / job}.log")
        seconds[job] = time.monotonic() - began
    return seconds


def soak(jobs: Jobs, reference: Jobs, seconds: dict[str, float], chance: random.Random) -> str:
    """One round. Returns what happened; raises AssertionError when a job ends as it must not.

    seconds: that an undisturbed job takes; less from here on where one takes less, as after a machine was busy.
    """
    happened = []
    for job in ("preprocess", "train"):
        ends = []
        for attempt in range(_DISTURBED_ATTEMPTS + 1):
            began = time.monotonic()
            if disturbed := attempt < _DISTURBED_ATTEMPTS:
                code = jobs.run(job, chance.uniform(0.2, 1.0) * seconds[job], chance.choice(_SIGNALS))
            else:
                code = jobs.run(job)
            ends.append(str(code))
            # SIGTERM before the job has its handler ends it as any process.
            expected = (0, -signal.SIGKILL, -signal.SIGTERM, _INTERRUPTED) if disturbed else (0,)
            assert code in expected, f"{job} ended with {', '.join(ends)}; see {jobs.folder / job}.log"
            if code == 0:
                if attempt == 0:
                    seconds[job] = min(seconds[job], time.monotonic() - began)
                break
        happened.append(f"{job} {', '.join(ends)}")
    found, expected_files = jobs.outcome(), reference.outcome()
    different = sorted(
        name for name in found.keys() | expected_files.keys() if found.get(name) != expected_files.get(name)
    )
    assert not different, f"{'; '.join(happened)}; different: {', '.join(different)}"
    return "; ".join(happened)


def _jobs(folder: Path, steps: int, artifact: Path | None = None) -> Jobs:
    folder.mkdir()
    return Jobs(folder, artifact or Jobs(folder, folder, steps).made, steps)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Kill both jobs at random moments until they finish.")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=6, help="of the train job")
    given = parser.parse_args(argv)
    failed = 0
    with tempfile.TemporaryDirectory(prefix="asr-soak-") as scratch:
        reference = _jobs(Path(scratch, "undisturbed"), given.steps)
        seconds = undisturbed(reference)
        print("undisturbed", json.dumps({job: round(taken, 1) for job, taken in seconds.items()}), flush=True)
        for number in range(1, given.rounds + 1):
            chance = random.Random(f"{given.seed} {number}")  # noqa: S311 - a round can be had again by its number
            try:
                jobs = _jobs(Path(scratch, f"round-{number}"), given.steps, reference.made)
                told = soak(jobs, reference, seconds, chance)
            except (AssertionError, subprocess.TimeoutExpired) as error:
                failed += 1
                told = f"FAILED {error}"
                for log in sorted(Path(scratch, f"round-{number}").glob("*.log")):
                    print(log.read_text(encoding="utf-8")[-4000:], flush=True)
            print(f"round {number}: {told}", flush=True)
    print(f"{given.rounds - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
