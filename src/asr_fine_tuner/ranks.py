"""The processes that train together: how they agree, wait for one another, and end together.

Every exchange between them begins with the question whether all are well. A rank that failed answers it with its error
wherever the others are, which then raise that error too: nobody waits for a rank that will not come. It takes that
everything one rank can fail at alone happens between two exchanges.
"""

from __future__ import annotations

import contextlib
import logging
import pickle
import platform
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from asr_fine_tuner.errors import JobError, TransientError
from asr_fine_tuner.launch import Launch
from asr_fine_tuner.stop import raise_if_stopped

logger = logging.getLogger(__name__)
T = TypeVar("T")

# Gradients travel in pieces of up to this size, copied together; one that is larger, such as that of the token
# embedding, travels alone. What that takes beside them is the largest piece.
_BUCKET_BYTES = 64 << 20
# Marks an error that all ranks raise, or that no rank can be told any more.
_TOLD = "told_to_all_ranks"


class Ranks:
    """The processes of a job, of which this one is `rank` of `size`. Alone, nothing is exchanged."""

    def __init__(
        self, launch: Launch, control: dist.ProcessGroup | None = None, notices: dist.Store | None = None
    ) -> None:
        """control: for small messages between processors. notices: what every rank can read at any time."""
        self.rank, self.size = launch.rank, launch.processes
        self._launch, self._control, self._notices = launch, control, notices
        self._failures = 0
        self._is_lost = False

    @property
    def on_this_node(self) -> int:
        """Ranks that share its memory."""
        return self._launch.local_processes

    @property
    def first(self) -> bool:
        """Whether this rank is the one that writes, publishes and tells."""
        return self.rank == 0

    def sum(self, amount: float) -> float:
        """The sum of what each rank gives.

        Raises:
            Exception: what a rank failed with, on every rank.
            TransientError: a rank is gone.
        """
        return self._exchange(amount, None)

    def meet(self) -> None:
        """Go on when all ranks have come here; raises as `sum`."""
        self._exchange(0, None)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """After the block, wait for the other ranks. What it raises on one of them is raised on all."""
        try:
            yield
        except Exception as error:
            if not hasattr(error, _TOLD):
                self._exchange(0, error)
            raise
        self.meet()

    def someone_failed(self) -> bool:
        """Whether another rank waits to tell what it failed with; for work that takes long without an exchange."""
        return self._notices is not None and self._notices.check([self._notice])

    def gather(self, value: T) -> list[T]:
        """What each rank gives, by rank; raises as `sum`."""
        self.meet()
        if self._control is None:
            return [value]
        gathered: list[Any] = [None] * self.size
        with self._in_contact():
            dist.all_gather_object(gathered, value, group=self._control)
        return cast("list[T]", gathered)

    def from_first(self, work: Callable[[], T]) -> T:
        """What `work` returns, which only the first rank does; raises as `sum`."""
        with self.together():
            result = work() if self.first else None
        return cast("T", self.gather(result)[0])

    def from_first_of_node(self, work: Callable[[], T]) -> T:
        """What `work` returns, which one rank of each node does: where it reads or fills what the node keeps."""
        local_rank = self._launch.local_rank
        with self.together():
            result = work() if local_rank == 0 else None
        return cast("T", self.gather(result)[self.rank - local_rank])

    def copy_from_first(self, model: torch.nn.Module) -> None:
        """Give every rank the weights of the first; raises as `sum`."""
        self.meet()
        if self.size > 1:
            with self._in_contact():
                for weight in model.state_dict().values():
                    dist.broadcast(weight, src=0)

    def average_gradients(self, weights: Iterable[torch.nn.Parameter]) -> None:
        """Give every rank the mean over all ranks of each gradient; raises as `sum`.

        After the backward pass and not within it, as DistributedDataParallel does: there a rank that runs out of memory
        leaves the others in a reduction that nothing ends. It also saves that one's copy of all gradients.

        Raises:
            torch.OutOfMemoryError: on this rank alone, while it can still tell the others: `together` does.
        """
        if self.size == 1:
            return
        trained = [weight for weight in weights if weight.requires_grad]
        for weight in trained:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
        buckets = _buckets([cast("torch.Tensor", weight.grad) for weight in trained])
        room = _room_for_largest(buckets)
        self.meet()  # and from here on nothing takes memory
        for bucket in buckets:
            sizes = [gradient.numel() for gradient in bucket]
            flat = room[: sum(sizes)]
            places = [place.view_as(gradient) for place, gradient in zip(flat.split(sizes), bucket, strict=True)]
            for place, gradient in zip(places, bucket, strict=True):
                place.copy_(gradient)
            with self._in_contact():
                dist.all_reduce(flat)
            flat.div_(self.size)
            for place, gradient in zip(places, bucket, strict=True):
                gradient.copy_(place)

    def part(self) -> None:
        """Wait until every rank has come to the end that it was told of, with what it does on the way.

        A launcher ends the other processes as soon as one has failed.
        """
        if self._control is not None and not self._is_lost:
            with contextlib.suppress(RuntimeError):
                dist.barrier(group=self._control)

    @property
    def _notice(self) -> str:
        return f"failure {self._failures}"

    def _exchange(self, amount: float, failure: Exception | None) -> float:
        if self._control is None:
            if failure is not None:
                raise failure
            return amount
        if failure is not None:
            self._announce(failure)
        told = torch.tensor([amount, float(failure is not None)], dtype=torch.float64)
        with self._in_contact():
            dist.all_reduce(told, group=self._control)
            if told[1]:
                raise self._agreed(failure)
        return float(told[0])

    def _announce(self, failure: Exception) -> None:
        if not self.first:
            expected = isinstance(failure, (JobError, torch.OutOfMemoryError))
            reason = str(failure) if expected else "".join(traceback.format_exception(failure))
            logger.critical("rank %d of %d, on %s: %s", self.rank, self.size, platform.node(), reason)
        if self._notices is not None:
            with self._in_contact():
                self._notices.set(self._notice, "")

    def _agreed(self, failure: Exception | None) -> Exception:
        """What all ranks raise: the failure of the first that has one."""
        told: list[bytes | None] = [None] * self.size
        dist.all_gather_object(told, _portable(failure, self.rank), group=self._control)
        self._failures += 1
        rank, pickled = next((rank, pickled) for rank, pickled in enumerate(told) if pickled is not None)
        own = failure if rank == self.rank else None
        told_by_all: Exception = own or pickle.loads(pickled)  # noqa: S301 - from a process of this job
        setattr(told_by_all, _TOLD, True)
        return told_by_all

    @contextlib.contextmanager
    def _in_contact(self) -> Iterator[None]:
        """
        Raises:
            InterruptedJob: a rank is gone, as this one is asked to be.
            TransientError: a rank is gone.
        """
        try:
            yield
        except torch.OutOfMemoryError:  # a RuntimeError too, and this rank's own
            raise
        except RuntimeError as error:  # what torch.distributed raises, of whatever backend
            if hasattr(error, _TOLD):
                raise
            self._is_lost = True
            reason = str(error).partition("\n")[0]
            try:
                raise_if_stopped("another process of the job is gone; the last checkpoint stays")
                raise TransientError(
                    given=f"contact to another of the {self.size} processes is lost: {reason}",
                    expected="all of them until the end",
                    action="see what ended it, above or in the log of its node; the same command continues",
                ) from error
            except JobError as told:
                setattr(told, _TOLD, True)
                raise


def _portable(failure: Exception | None, rank: int) -> bytes | None:
    """The failure as other ranks may raise it, with its rank and, unless it was expected, its traceback."""
    if failure is None:
        return None
    if isinstance(failure, JobError):
        where = f"rank {rank}: " if rank else ""
        return pickle.dumps(
            type(failure)(given=where + failure.given, expected=failure.expected, action=failure.action)
        )
    note = f"on rank {rank}:\n{''.join(traceback.format_exception(failure))}"
    copy: Exception
    if isinstance(failure, torch.OutOfMemoryError):
        copy = torch.OutOfMemoryError(str(failure))
    elif isinstance(failure, OSError):
        copy = OSError(failure.errno, failure.strerror, failure.filename)
    else:
        copy = RuntimeError(f"{type(failure).__name__}: {failure}")
    copy.add_note(note)
    return pickle.dumps(copy)


def _buckets(gradients: Iterable[torch.Tensor]) -> list[list[torch.Tensor]]:
    buckets: list[list[torch.Tensor]] = []
    n_bytes = 0
    for gradient in gradients:
        if not buckets or n_bytes + gradient.nbytes > _BUCKET_BYTES:
            buckets.append([])
            n_bytes = 0
        buckets[-1].append(gradient)
        n_bytes += gradient.nbytes
    return buckets


def _room_for_largest(buckets: list[list[torch.Tensor]]) -> torch.Tensor:
    """Memory for the numbers of any one bucket, of the type and on the device of the gradients."""
    return buckets[0][0].new_empty(max(sum(gradient.numel() for gradient in bucket) for bucket in buckets))
