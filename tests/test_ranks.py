"""ranks.py and joining.py: what ranks tell one another, and that an error of one is an error of all."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import socket
import time
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch

from asr_fine_tuner import InterruptedJob, PermanentError, TransientError
from asr_fine_tuner.joining import joined_ranks
from asr_fine_tuner.launch import Launch
from asr_fine_tuner.ranks import Ranks
from asr_fine_tuner.run_folder import Identity
from asr_fine_tuner.training import _refuse_another_job

_FORK = multiprocessing.get_context("fork")


def in_two_ranks(
    work: Callable[[Ranks], Any], local_processes: int = 2, afterwards: Callable[[], Any] = lambda: None
) -> list[Any]:
    """What `work` returns in each of two processes, or the error that it raises there; None of one that is killed.

    afterwards: is done by each when it is no rank any more.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ends = []
    for rank in (0, 1):
        ours, theirs = _FORK.Pipe()
        local = {"LOCAL_RANK": str(rank % local_processes), "LOCAL_WORLD_SIZE": str(local_processes)}
        of_all = {"WORLD_SIZE": "2", "RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        process = _FORK.Process(target=_be_a_rank, args=(work, afterwards, {**of_all, **local}, theirs))
        process.start()
        theirs.close()
        ends.append((process, ours))
    results: list[Any] = [None, None]
    for rank, (_, ours) in enumerate(ends):
        with contextlib.suppress(EOFError):
            results[rank] = ours.recv() if ours.poll(60) else None
    for process, _ in ends:
        process.join(10)
        assert process.exitcode is not None, "a rank waits in vain"
    return results


def _be_a_rank(
    work: Callable[[Ranks], Any], afterwards: Callable[[], Any], environment: dict[str, str], told: Connection
) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)  # the threads of the process that was forked are not here
    try:
        with joined_ranks() as ranks:
            result = work(ranks)
    except Exception as error:  # noqa: BLE001 - the test looks at it
        result = error
    afterwards()
    told.send(result)


def test_amounts_are_added_and_values_gathered() -> None:
    def work(ranks: Ranks) -> Any:
        return ranks.sum(ranks.rank + 0.5), ranks.gather(f"rank {ranks.rank}"), ranks.first

    assert in_two_ranks(work) == [(2.0, ["rank 0", "rank 1"], True), (2.0, ["rank 0", "rank 1"], False)]


def test_what_the_first_does_is_done_once() -> None:
    assert in_two_ranks(lambda ranks: ranks.from_first(lambda: f"by {ranks.rank}")) == ["by 0", "by 0"]


@pytest.mark.parametrize(("local_processes", "expected"), [(2, ["by 0", "by 0"]), (1, ["by 0", "by 1"])])
def test_what_a_node_keeps_is_done_once_on_each(local_processes: int, expected: list[str]) -> None:
    def work(ranks: Ranks) -> str:
        return ranks.from_first_of_node(lambda: f"by {ranks.rank}")

    assert in_two_ranks(work, local_processes) == expected


def test_weights_are_those_of_the_first_and_gradients_the_mean() -> None:
    def work(ranks: Ranks) -> Any:
        model = torch.nn.Linear(3, 2)
        model.bias.requires_grad = False
        torch.nn.init.constant_(model.weight, ranks.rank)
        ranks.copy_from_first(model)
        if ranks.first:  # the other one has none
            model.weight.grad = torch.full_like(model.weight, 3.0)
        ranks.average_gradients(model.parameters())
        assert model.bias.grad is None
        assert model.weight.grad is not None
        return model.weight.tolist(), model.weight.grad.tolist()

    zeros, means = [[0.0] * 3] * 2, [[1.5] * 3] * 2
    assert in_two_ranks(work) == [(zeros, means)] * 2


def test_gradients_travel_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of up to 40 bytes: the first two weights together, the third, which is larger, alone, and then the last."""
    monkeypatch.setattr("asr_fine_tuner.ranks._BUCKET_BYTES", 40)

    def work(ranks: Ranks) -> list[Any]:
        weights = [torch.nn.Parameter(torch.empty(shape)) for shape in ((2, 3), (4,), (3, 4), (2,))]
        for n, weight in enumerate(weights):
            ramp = torch.arange(weight.numel(), dtype=torch.float32) * (n + 1)
            laid_out = (ramp + 2 * ranks.rank).reshape(weight.shape)
            # As convolutions leave theirs: not in the order of the shape.
            weight.grad = laid_out.T.contiguous().T if weight.dim() == 2 else laid_out
        ranks.average_gradients(weights)
        return [weight.grad.flatten().tolist() for weight in weights if weight.grad is not None]

    expected = [[float(i * (n + 1) + 1) for i in range(size)] for n, size in enumerate((6, 4, 12, 2))]
    assert in_two_ranks(work) == [expected] * 2


@pytest.mark.parametrize("takes_memory", ["torch.zeros_like", "asr_fine_tuner.ranks._room_for_largest"])
def test_memory_that_one_lacks_for_the_mean_is_told_to_all(monkeypatch: pytest.MonkeyPatch, takes_memory: str) -> None:
    def lack(*_: object) -> None:
        raise torch.OutOfMemoryError("out of memory")

    def work(ranks: Ranks) -> Any:
        weight = torch.nn.Parameter(torch.zeros(2))
        if ranks.first:
            weight.grad = torch.full_like(weight, 3.0)
        with monkeypatch.context() as second:
            if not ranks.first:
                second.setattr(takes_memory, lack)
            with pytest.raises(torch.OutOfMemoryError), ranks.together():
                ranks.average_gradients([weight])
        ranks.average_gradients([weight])
        return weight.grad.tolist() if weight.grad is not None else None

    assert in_two_ranks(work) == [[1.5, 1.5]] * 2


def _fails_on(rank: int, error: Exception) -> Callable[[Ranks], None]:
    """Work in which one rank fails by itself, while the other goes on to an exchange."""

    def work(ranks: Ranks) -> None:
        if ranks.rank == rank:
            raise error
        ranks.gather("waiting")

    return work


def test_an_expected_error_of_one_is_raised_by_all() -> None:
    error = PermanentError(given="a bad clip", expected="a good one", action="mend it")
    first, second = in_two_ranks(_fails_on(1, error))
    assert isinstance(first, PermanentError)
    assert isinstance(second, PermanentError)
    assert (first.given, first.expected, first.action) == ("rank 1: a bad clip", "a good one", "mend it")
    assert second.given == "a bad clip"


def test_a_rank_waits_for_what_others_do_before_they_end(tmp_path: Path) -> None:
    """As the first one tells W&B of it."""

    def work(ranks: Ranks) -> None:
        try:
            _fails_on(1, KeyError("clip"))(ranks)
        finally:
            if ranks.first:
                time.sleep(0.5)
                (tmp_path / "told").touch()

    in_two_ranks(work, afterwards=lambda: (tmp_path / f"{os.environ['RANK']} ends").touch())
    told, *ends = (tmp_path / name for name in ("told", "0 ends", "1 ends"))
    assert all(told.stat().st_mtime_ns <= end.stat().st_mtime_ns for end in ends)


def test_an_interruption_of_the_first_is_one_of_all() -> None:
    error = InterruptedJob(given="SIGTERM received", expected="", action="")
    assert [type(raised) for raised in in_two_ranks(_fails_on(0, error))] == [InterruptedJob] * 2


def test_a_bug_in_one_is_told_with_its_traceback() -> None:
    first, _ = in_two_ranks(_fails_on(1, KeyError("clip")))
    assert isinstance(first, RuntimeError)
    assert "KeyError: 'clip'" in str(first)
    (note,) = first.__notes__
    assert note.startswith("on rank 1:\nTraceback")


def test_a_full_disk_stays_one() -> None:
    _, second = in_two_ranks(_fails_on(0, OSError(errno.ENOSPC, "No space left on device", "/data/checkpoint")))
    assert (second.errno, second.filename) == (errno.ENOSPC, "/data/checkpoint")


def test_out_of_memory_can_be_agreed_on_and_got_over() -> None:
    def work(ranks: Ranks) -> float:
        for clips in (4, 2, 1):
            try:
                with ranks.together():
                    if clips > 1 and ranks.rank == 1:
                        raise torch.OutOfMemoryError("out of memory")  # noqa: TRY301 - what is caught is the agreed one
            except torch.OutOfMemoryError:
                continue
            return ranks.sum(clips)
        raise AssertionError

    assert in_two_ranks(work) == [2.0, 2.0]


def test_someone_who_waits_with_an_error_is_noticed() -> None:
    def work(ranks: Ranks) -> None:
        with ranks.together():
            if ranks.rank == 1:
                raise PermanentError(given="bad", expected="", action="")
            while not ranks.someone_failed():
                pass

    assert [type(raised) for raised in in_two_ranks(work)] == [PermanentError] * 2


def test_a_rank_that_is_gone_is_noticed() -> None:
    def work(ranks: Ranks) -> None:
        if ranks.rank == 1:
            os._exit(9)
        ranks.meet()

    first, second = in_two_ranks(work)
    assert isinstance(first, TransientError)
    assert "contact to another of the 2 processes is lost" in first.given
    assert second is None


def test_alone_nothing_is_exchanged() -> None:
    ranks = Ranks(Launch())
    assert (ranks.sum(3), ranks.gather("x"), ranks.from_first(lambda: "y"), ranks.someone_failed()) == (
        3, ["x"], "y", False
    )  # fmt: skip
    error = KeyError("as it is")
    with pytest.raises(KeyError) as raised, ranks.together():
        raise error
    assert raised.value is error


def test_processes_that_do_not_find_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    for name, value in {**environment, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "9"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("asr_fine_tuner.joining._TO_FIND_ONE_ANOTHER", timedelta(seconds=1))
    with pytest.raises(TransientError, match=r"2 processes of the job did not find one another at 127\.0\.0\.1:9"):
        joined_ranks().__enter__()


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    monkeypatch.setattr("asr_fine_tuner.joining._backend", lambda: "gloo")
    first, second = in_two_ranks(lambda ranks: ranks.meet())
    assert isinstance(first, PermanentError)
    assert "2 processes on" in first.given
    assert "one of them sees 1 GPUs (CUDA_VISIBLE_DEVICES=3)" in first.given
    assert "not --gpus-per-task" in first.action
    assert isinstance(second, PermanentError)


def test_models_split_by_accelerate_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    first, _ = in_two_ranks(lambda ranks: ranks.meet())
    assert isinstance(first, PermanentError)
    assert "ACCELERATE_USE_FSDP" in first.given


def test_ranks_that_were_started_differently_are_refused() -> None:
    same: Identity = {"seed": 42, "artifact": "a"}
    _refuse_another_job([same, {**same}])
    with pytest.raises(PermanentError, match="artifact of rank 2"):
        _refuse_another_job([same, same, {**same, "artifact": "b"}])
