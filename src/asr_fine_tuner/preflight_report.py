"""What a preflight tells: its checks, the estimates, the exit code. Light to import, for when it ends early."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from asr_fine_tuner.checklist import Checklist
from asr_fine_tuner.errors import ExitCode, PermanentError

if TYPE_CHECKING:
    from asr_fine_tuner.memory import MemoryPlan
    from asr_fine_tuner.rehearsal import Pace

CHECKS = (
    "parameters",
    "Hub token",
    "tracking",
    "model",
    "artifact",
    "dataset",
    "fit",
    "publishing",
    "output folder",
    "disk",
    "memory",
    "weights",
    "rehearsal",
)


@dataclass(frozen=True, slots=True)
class PreflightReport:
    """What the checks found.

    disk_bytes: what the job needs below output_dir. memory: the estimate for this device. pace: of the rehearsal.
    job_seconds: how long the job, or what is left of it, takes at most. Each is None where it was not found out.
    """

    checks: Checklist
    disk_bytes: int | None = None
    memory: MemoryPlan | None = None
    pace: Pace | None = None
    job_seconds: float | None = None

    @property
    def exit_code(self) -> ExitCode:
        return self.checks.exit_code

    def as_json(self) -> Mapping[str, object]:
        statuses = {ExitCode.DONE: "done", ExitCode.INTERRUPTED: "interrupted"}
        estimate: dict[str, object] = {"disk_bytes": self.disk_bytes, "job_seconds": self.job_seconds}
        if self.memory:
            estimate |= {"training_bytes": self.memory.training, "evaluation_bytes": self.memory.evaluation}
        return {
            "status": statuses.get(self.exit_code, "failed"),
            "exit_code": self.exit_code,
            "checks": self.checks.as_json(),
            "estimate": estimate,
            "rehearsal": asdict(self.pace) if self.pace else None,
        }


def refuse(error: PermanentError) -> PreflightReport:
    """The report when the parameters cannot be read, so that nothing else can be checked."""
    checks = Checklist(CHECKS)
    checks.fail("parameters", error)
    checks.leave(error, "needs the parameters")
    checks.show()
    return PreflightReport(checks)
