"""Encoding shards on a Ray cluster: each is a task for any node, and Ray runs it again when its node is lost."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import signal
import socket
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from asr_fine_tuner.errors import JobError, PermanentError, TransientError
from asr_fine_tuner.logs import redact_stderr
from asr_fine_tuner.shards import EncodedShard, ShardTask, encode_shard, finished_record
from asr_fine_tuner.stop import raise_if_stopped, stop_requested

if TYPE_CHECKING:
    import ray

ADDRESS_VARIABLE = "RAY_ADDRESS"  # as Ray reads it: HOST:PORT of the head node
_SECONDS_BETWEEN_STOP_CHECKS = 0.5
_SECONDS_TO_CONNECT = 60.0
_RETRIES = 5  # of one shard, for a lost node, a killed worker or a Hub that is down
# Shards that wait for a core keep cores busy between two shards, and tell an autoscaler that more cores are of use.
_SHARDS_PER_CORE = 2


def encode_on_ray(tasks: Sequence[ShardTask], at_once: int | None) -> Generator[EncodedShard, None, None]:
    """Each shard as it is finished, in whatever order. Ends early when a stop is asked for; running tasks are killed
    then, and what they had begun is dropped.

    at_once: shards in the cluster at a time; when None, twice as many as it has cores at that moment.
    Raises:
        PermanentError: Ray is not installed, no cluster was named, or a node lacks a folder that all nodes have to see.
        TransientError: the cluster cannot be reached, or a shard was lost again and again.
    """
    with _connected() as cluster:
        encode = cluster.remote(num_cpus=1, max_retries=_RETRIES, retry_exceptions=[TransientError])(_encode_on_node)
        todo = iter(tasks)
        running: list[ray.ObjectRef[EncodedShard]] = []
        try:
            while not stop_requested():
                # At least one, for which an autoscaler begins the first node.
                limit = at_once or max(1, _SHARDS_PER_CORE * int(cluster.cluster_resources().get("CPU", 0)))
                running += [encode.remote(task) for task in itertools.islice(todo, max(0, limit - len(running)))]
                if not running:
                    return
                done, running = cluster.wait(running, timeout=_SECONDS_BETWEEN_STOP_CHECKS)
                for encoded in done:
                    yield _result(encoded)
        finally:
            for encoded in running:
                cluster.cancel(encoded, force=True)


@contextlib.contextmanager
def _connected() -> Iterator[Any]:
    """Ray's module, connected to the cluster that the environment names, or to the one the caller is connected to."""
    try:
        import ray
    except ImportError:
        raise PermanentError(
            given="--engine ray, and Ray is not installed",
            expected="Ray here and on every node, in one version",
            action="pip install 'ray>=2.50,<3'",
        ) from None
    if ray.is_initialized():
        yield ray
        return
    _connect(ray)
    try:
        yield ray
    finally:
        ray.shutdown()


def _connect(ray: Any) -> None:
    failures: list[Exception] = []

    def connect() -> None:
        try:
            ray.init(address="auto", logging_level="ERROR")
        except Exception as error:  # noqa: BLE001 - raised below, in the thread that asked for it
            failures.append(error)

    # In a thread: Ray waits for minutes for a cluster that is not there, and from the main thread it would put its own
    # handler for SIGTERM in the place of ours.
    connecting = threading.Thread(target=connect, name="connect to Ray", daemon=True)
    connecting.start()
    until = time.monotonic() + _SECONDS_TO_CONNECT
    while connecting.is_alive() and time.monotonic() < until:
        raise_if_stopped("finished shards are kept")
        connecting.join(_SECONDS_BETWEEN_STOP_CHECKS)
    address = os.environ.get(ADDRESS_VARIABLE)
    if not failures and not connecting.is_alive():
        if threading.current_thread() is threading.main_thread():
            # Ray has put one of C++ before it all the same, which prints its stack and aborts the process 3 s later.
            signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
        return
    why = _first_line(failures[0]) if failures else f"no answer in {_SECONDS_TO_CONNECT:.0f} s"
    if address and (not failures or isinstance(failures[0], ConnectionError)):
        raise TransientError(
            given=f"--engine ray, and the cluster of {ADDRESS_VARIABLE}={address} cannot be reached ({why})",
            expected="a Ray cluster that answers",
            action=f"check {ADDRESS_VARIABLE} and the cluster (ray status), then submit again",
        )
    raise PermanentError(
        given=f"--engine ray with {ADDRESS_VARIABLE}={address or ''}: {why}",
        expected="a Ray cluster",
        action=f"set {ADDRESS_VARIABLE} to HOST:PORT of its head node; `ray start --head` begins one on this machine",
    ) from (failures[0] if failures else None)


def _encode_on_node(task: ShardTask) -> EncodedShard:
    """Runs on a node. A shard that was finished before its node was lost is not encoded again."""
    _prepare_process()
    if not task.work.artifact.is_dir():  # which would be made, on a disk of this node only
        raise _not_seen(str(task.work.artifact))
    try:
        record = finished_record(task)
        return EncodedShard(record, 0) if record else encode_shard(task)
    except FileNotFoundError as error:
        raise _not_seen(str(error)) from None


def _not_seen(what: str) -> PermanentError:
    return PermanentError(
        given=f"the Ray node {socket.gethostname()} does not see {what}",
        expected="HF_HOME, and a dataset or model that is a folder, on a volume that all nodes have at the same path",
        action="mount it on all nodes, or take the node out of the cluster; finished shards are kept",
    )


@functools.cache
def _prepare_process() -> None:
    import torch

    redact_stderr()
    torch.set_num_threads(1)  # Ray counts a core for each task


def _result(encoded: ray.ObjectRef[EncodedShard]) -> EncodedShard:
    import ray
    from ray.exceptions import RayError, RayTaskError

    try:
        result: EncodedShard = ray.get(encoded)
    except RayTaskError as error:
        if isinstance(error.cause, JobError):
            raise error.cause from None
        raise
    except RayError as error:
        raise TransientError(
            given=f"a shard was lost {_RETRIES + 1} times ({type(error).__name__}: {_first_line(error)})",
            expected="nodes that live, and enough memory for a shard on each of their cores (about 0.5 GB)",
            action="see `ray status` and the logs of the nodes, then submit again; finished shards are kept",
        ) from error
    return result


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
