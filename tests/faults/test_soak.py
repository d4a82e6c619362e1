"""A round of the soak, with jobs that start at once: signals at random moments change nothing that is made."""

from __future__ import annotations

import os
import random
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import soak
from warm_jobs import WarmJobs


@dataclass(frozen=True)
class _WarmSoak(soak.Jobs):
    jobs: WarmJobs | None = None

    def run(self, job: str, signal_after: float | None = None, number: int = signal.SIGKILL) -> int:
        assert self.jobs
        running = self.jobs.start(job, self.parameters(job), env=self.environment)
        if signal_after is not None:
            time.sleep(signal_after)
            os.kill(running.pid, number)  # it is there until it is waited for
        return running.wait().returncode


def test_what_is_made_stays_the_same(jobs: WarmJobs, tmp_path: Path) -> None:
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    made = soak.Jobs(undisturbed, undisturbed, steps=3).made
    reference, again = (_WarmSoak(folder, made, steps=3, workers=1, jobs=jobs) for folder in (undisturbed, disturbed))
    undisturbed.mkdir()
    disturbed.mkdir()
    seconds = soak.undisturbed(reference)
    happened = soak.soak(again, reference, seconds, random.Random(1))  # noqa: S311
    assert happened != "preprocess 0; train 0", "nothing was disturbed"
