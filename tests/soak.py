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
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "demo"
_SIGNALS = (signal.SIGKILL, signal.SIGTERM)
_INTERRUPTED = 143
_DISTURBED_ATTEMPTS = 6


@dataclass(frozen=True)
class Jobs:
    """The two jobs of a round, in a folder of their own. The artifact is the one in `artifact`."""

    folder: Path
    artifact: Path
    steps: int

    def command(self, job: str) -> list[str]:
        caps = {"max_train_samples": 24, "max_eval_samples": 6}
        parameters: dict[str, object] = {"model_id": DEMO / "model", **caps}
        if job == "preprocess":
            parameters |= {
                "dataset_name": DEMO / "dataset",
                "language_code": "it",
                "artifact_name": "soak",
                "num_workers": 2,
            }
        else:
            parameters |= {
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
        return [sys.executable, "-m", f"jobs.{job}", *(f"--{name}={value}" for name, value in parameters.items())]

    def start(self, job: str) -> subprocess.Popen[bytes]:
        environment = {
            **os.environ,
            "HF_HOME": str(self.folder / "hf"),
            "HF_HUB_OFFLINE": "1",
            "WANDB_MODE": "disabled",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
        }
        log = (self.folder / f"{job}.log").open("ab")
        return subprocess.Popen(self.command(job), cwd=self.folder, env=environment, stdout=log, stderr=log)

    @property
    def made(self) -> Path:
        return self.folder / "hf" / "assets" / "asr-fine-tuner" / "artifacts" / "soak" / "artifact"

    def outcome(self) -> dict[str, bytes]:
        """What has to be the same each time: the artifact's files, the weights, and the transcripts of the test."""
        files = {path.relative_to(self.folder).as_posix(): path for path in self.made.rglob("*") if path.is_file()}
        model = self.folder / "run" / "model"
        files |= {name: model / name for name in ("model.safetensors", "predictions.jsonl")}
        return {name: path.read_bytes() for name, path in files.items()}


def undisturbed(folder: Path, steps: int) -> tuple[Jobs, Mapping[str, float]]:
    """The jobs to compare with, and how many seconds each took."""
    folder.mkdir()
    jobs = Jobs(folder, Jobs(folder, folder, steps).made, steps)
    seconds = {}
    for job in ("preprocess", "train"):
        began = time.monotonic()
        if code := jobs.start(job).wait():
            raise RuntimeError(f"{job} ended with {code} undisturbed; see {folder / job}.log")
        seconds[job] = time.monotonic() - began
    return jobs, seconds


def soak(folder: Path, reference: Jobs, seconds: Mapping[str, float], chance: random.Random) -> str:
    """One round. Returns what happened; raises AssertionError when a job ends as it must not."""
    folder.mkdir()
    jobs = Jobs(folder, reference.made, reference.steps)
    happened = []
    for job in ("preprocess", "train"):
        ends = []
        for attempt in range(_DISTURBED_ATTEMPTS + 1):
            process = jobs.start(job)
            disturbed = attempt < _DISTURBED_ATTEMPTS
            if disturbed:
                try:
                    process.wait(chance.uniform(0.2, 1.0) * seconds[job])
                except subprocess.TimeoutExpired:
                    process.send_signal(chance.choice(_SIGNALS))
            code = process.wait(120)
            ends.append(str(code))
            # SIGTERM before the job has its handler ends it as any process.
            expected = (0, -signal.SIGKILL, -signal.SIGTERM, _INTERRUPTED) if disturbed else (0,)
            assert code in expected, f"{job} ended with {', '.join(ends)}; see {folder / job}.log"
            if code == 0:
                break
        happened.append(f"{job} {', '.join(ends)}")
    found, expected_files = jobs.outcome(), reference.outcome()
    different = sorted(
        name for name in found.keys() | expected_files.keys() if found.get(name) != expected_files.get(name)
    )
    assert not different, f"{'; '.join(happened)}; different: {', '.join(different)}"
    return "; ".join(happened)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Kill both jobs at random moments until they finish.")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=6, help="of the train job")
    given = parser.parse_args(argv)
    failed = 0
    with tempfile.TemporaryDirectory(prefix="asr-soak-") as scratch:
        reference, seconds = undisturbed(Path(scratch, "undisturbed"), given.steps)
        print("undisturbed", json.dumps({job: round(taken, 1) for job, taken in seconds.items()}), flush=True)
        for number in range(1, given.rounds + 1):
            chance = random.Random(f"{given.seed} {number}")  # noqa: S311 - a round can be had again by its number
            try:
                told = soak(Path(scratch, f"round-{number}"), reference, seconds, chance)
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
