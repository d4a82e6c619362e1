"""Joining the other processes of a job, however they were started."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterator
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from asr_fine_tuner.errors import PermanentError, TransientError
from asr_fine_tuner.launch import Launch, launch_of
from asr_fine_tuner.ranks import Ranks

# Between the first node's start and the last one's.
_TO_FIND_ONE_ANOTHER = timedelta(minutes=30)
# A rank that is gone is noticed by its closed connection. What is waited for here is work: the download of a model, an
# artifact's verification.
_PATIENCE = timedelta(hours=12)
_joined: list[Ranks] = []  # none, or the one that this process has joined


@contextlib.contextmanager
def joined_ranks() -> Iterator[Ranks]:
    """Join the other processes of this job, when something launched several; what one of them raises, all raise.

    Collectives are computed by NCCL between GPUs, and by Gloo between processors. Within the block it gives the same.

    Raises:
        PermanentError: more processes than GPUs on a node, or a way of splitting the model that is not supported.
        TransientError: the processes did not find one another.
    """
    launch = launch_of(os.environ)
    if launch.processes == 1 or _joined:
        yield _joined[0] if _joined else Ranks(launch)
        return
    _refuse_split_models()
    ranks = _join(launch)
    try:
        with ranks.together():
            with ranks.together():
                _take_gpu(launch)
            _joined.append(ranks)
            yield ranks
    except Exception:
        ranks.part()
        raise
    finally:
        _joined.clear()
        dist.destroy_process_group()


def _join(launch: Launch) -> Ranks:
    try:
        store, rank, size = next(rendezvous("env://", launch.rank, launch.processes, timeout=_TO_FIND_ONE_ANOTHER))
        dist.init_process_group(_backend(), store=store, rank=rank, world_size=size)
        return Ranks(launch, dist.new_group(backend="gloo", timeout=_PATIENCE), store)
    except dist.DistError as error:
        reason = str(error).partition("\n")[0]
        raise TransientError(
            given=f"the {launch.processes} processes of the job did not find one another at "
            f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}: {reason}",
            expected=f"all of them within {_TO_FIND_ONE_ANOTHER}",
            action="start it on every node, with an address of the first one that the others reach; then try again",
        ) from error


def _backend() -> str:
    return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"


def _take_gpu(launch: Launch) -> None:
    if not torch.cuda.is_available():
        return
    n_gpus = torch.cuda.device_count()
    if launch.local_processes > n_gpus:
        raise PermanentError(
            given=f"{launch.local_processes} processes on {platform.node()}, where one of them sees {n_gpus} GPUs "
            f"(CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES', '')})",
            expected="a GPU for each process, and every process of a node sees all of them",
            action=f"start {n_gpus} on each node (--nproc-per-node, --num_processes); where there are more GPUs, show "
            "them to each process: --gpus-per-node of Slurm, not --gpus-per-task",
        )
    torch.cuda.set_device(launch.local_rank)


def _refuse_split_models() -> None:
    for name in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_MEGATRON_LM"):
        if os.environ.get(name, "false").lower() in ("true", "1"):
            raise PermanentError(
                given=f"{name}=true, as a configuration of accelerate sets it",
                expected="the whole model in each process, which Whisper's size allows",
                action="start with torchrun, or with accelerate launch --multi_gpu and another configuration",
            )
