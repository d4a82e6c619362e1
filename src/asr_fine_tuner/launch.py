"""How this process was started: alone, or as one of several by torchrun, `accelerate launch` or a scheduler."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from asr_fine_tuner.errors import PermanentError

# What torchrun sets for each process it starts, and `torch.distributed` reads.
_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True, slots=True)
class Launch:
    """rank: of this process among the `processes` of the job. local_rank: among the `local_processes` of its node."""

    rank: int = 0
    processes: int = 1
    local_rank: int = 0
    local_processes: int = 1


def launch_of(environment: Mapping[str, str]) -> Launch:
    """
    Raises:
        PermanentError: the environment speaks of several processes, and does not say which one this is.
    """
    if is_alone(environment):
        return Launch()
    if missing := [name for name in _VARIABLES if name not in environment]:
        raise PermanentError(
            given=f"WORLD_SIZE={environment['WORLD_SIZE']} in the environment, without {', '.join(missing)}",
            expected="the variables that torchrun sets for each process, or none of them",
            action="start several processes with torchrun or accelerate launch, or unset WORLD_SIZE for a single one",
        )
    rank, processes, local_rank, local_processes = (int(environment[name]) for name in _VARIABLES[:4])
    return Launch(rank, processes, local_rank, local_processes)


def is_alone(environment: Mapping[str, str] = os.environ) -> bool:
    return environment.get("WORLD_SIZE", "1") == "1"


def is_first_process() -> bool:
    """Whether this process speaks for the job: of several, only the one of rank 0 does."""
    return is_alone() or os.environ.get("RANK", "0") == "0"
