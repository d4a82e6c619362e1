"""Shards on a real Ray cluster of two nodes on this machine, one of which is lost midway."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import tiny
from test_shards import DeadlyShard, ListedShard, examples, task

from asr_fine_tuner import ray_engine
from asr_fine_tuner.engines import encode_shards
from asr_fine_tuner.errors import JobError, PermanentError, TransientError
from asr_fine_tuner.ray_engine import encode_on_ray
from asr_fine_tuner.shards import ShardTask, WorkingFolder

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from loopback.hub import LoopbackHub
    from ray.cluster_utils import Cluster
    from warm_jobs import WarmJobs

    from asr_fine_tuner.examples import Example
    from asr_fine_tuner.parameters import Engine

FILES = tuple(f"train-{index:05d}-of-00008" for index in range(8))


class LostShard(ListedShard):
    """Of a folder that only this machine has."""

    def examples(self, rows: Sequence[int]) -> Iterator[Example]:
        raise FileNotFoundError("/here/only/clips.tar")


@dataclass
class TwoNodes:
    """A cluster whose nodes have one core each, so that a shard is under way on each of them."""

    cluster: Cluster
    second: Any
    hf_home: Path

    def environment(self) -> dict[str, str]:
        return {**os.environ, "HF_HOME": str(self.hf_home), "RAY_ADDRESS": self.cluster.address}

    def lose_second(self) -> None:
        self.cluster.remove_node(self.second, allow_graceful=False)
        self.second = None


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoNodes]:
    from ray.cluster_utils import Cluster

    home = tmp_path_factory.mktemp("ray") / "hf"
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    node: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80_000_000}
    # Not below pytest's folder: a socket's path has at most 107 characters.
    with tempfile.TemporaryDirectory(prefix="ray-") as folder, pytest.MonkeyPatch.context() as patched:
        # What the nodes' processes inherit. Ray writes the address of its cluster below RAY_TMPDIR alone.
        inherited = {"HF_HOME": home, "HF_HUB_ETAG_TIMEOUT": 60, "RAY_USAGE_STATS_ENABLED": 0, "RAY_TMPDIR": folder}
        for name, value in inherited.items():
            patched.setenv(name, str(value))
        cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
        second = cluster.add_node(**node)
        patched.undo()
        yield TwoNodes(cluster, second, home)
        cluster.shutdown()
    for number, handler in before.items():
        signal.signal(number, handler)


def given(engine: Engine) -> dict[str, object]:
    return tiny.preprocess_flags(dataset_name="org/speech", artifact_name="made", engine=engine)


def start(nodes: TwoNodes, folder: Path) -> subprocess.Popen[str]:
    flags = [f"--{name}={value}" for name, value in given("ray").items()]
    command = [sys.executable, "-m", "jobs.preprocess", *flags]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=folder, env=nodes.environment(), **pipes)


def wait_until_both_fetch(hub: LoopbackHub, process: subprocess.Popen[str]) -> None:
    """Until the two stalled downloads have begun."""
    until = time.monotonic() + 120
    while any(fault.times for fault in hub._faults):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.05)


def ended(process: subprocess.Popen[str]) -> tuple[dict[str, Any], str]:
    stdout, stderr = process.communicate(timeout=120)
    (last_line,) = stdout.splitlines() or [stderr]
    return json.loads(last_line), stderr


def test_what_is_finished_is_kept_when_the_job_is_stopped_or_a_node_is_lost(
    nodes: TwoNodes, hub: LoopbackHub, jobs: WarmJobs, tmp_path: Path
) -> None:
    """SIGTERM while both nodes are at work; then the job again, and a node is killed while both are.

    The artifact is byte for byte what one machine makes, with the rejected clips and the order that they are told in.
    """
    splits = tiny.all_splits(96, 8)
    for place, reason in ((20, "silent"), (50, "truncated"), (90, "too_short")):
        splits["train"][place:place] = tiny.broken()[reason]
    hub.add_repo("dataset", "org/speech", tiny.write_dataset(tmp_path / "speech", splits, n_files=8))
    for name in FILES[3:5]:
        hub.stall(name, 60.0, times=1, method="HEAD")  # when the file is fetched, not its footer
    job = start(nodes, tmp_path)
    wait_until_both_fetch(hub, job)
    job.terminate()
    began = time.monotonic()
    result, stderr = ended(job)
    assert time.monotonic() - began < 10, "the grace time"
    assert (job.returncode, result["status"]) == (143, "interrupted"), stderr
    assert "SIGTERM" in result["error"]["given"]
    assert "*** SIGTERM received" not in stderr, "Ray's own handler, which aborts after 3 s"
    records = nodes.hf_home / "assets/asr-fine-tuner/artifacts/made/partial/shards"
    finished = {path.name: path.stat().st_ino for path in records.glob("*.json")}
    assert 1 <= len(finished) < 8

    for name in FILES[6:8]:
        hub.stall(name, 5.0, times=1, method="HEAD")  # when the file is fetched, not its footer
    job = start(nodes, tmp_path)
    wait_until_both_fetch(hub, job)
    assert {name: (records / name).stat().st_ino for name in finished} == finished
    nodes.lose_second()
    undisturbed = jobs.start("preprocess", given("local"), env={"HF_HOME": str(tmp_path / "hf")})
    result, stderr = ended(job)
    assert job.returncode == 0, stderr
    assert f"{len(finished)} of 10 shards are finished already" in stderr
    of_one_machine = undisturbed.wait()
    assert of_one_machine.returncode == 0, of_one_machine.stderr
    made = tiny.contents(Path(result["artifact"]))
    assert len(made["rejected.jsonl"].splitlines()) == 4
    assert made == tiny.contents(Path(of_one_machine.result["artifact"]))


def test_what_goes_wrong_on_a_node(nodes: TwoNodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process that is connected already, and stays so."""
    import ray

    monkeypatch.setattr(ray_engine, "_RETRIES", 0)
    work = WorkingFolder(tmp_path / "partial")
    work.create("identity")
    elsewhere = WorkingFolder(tmp_path / "not mounted")
    cases: tuple[tuple[ShardTask, type[JobError], str], ...] = (
        (task(elsewhere, 0, examples(1)), PermanentError, "does not see .*not mounted"),
        (task(work, 0, examples(1), LostShard), PermanentError, "does not see .*clips.tar"),
        (task(work, 0, examples(2), DeadlyShard), TransientError, "a shard was lost 1 times"),
    )
    with ray.init(address=nodes.cluster.address, log_to_driver=False):
        for todo, kind, told in cases:
            with pytest.raises(kind, match=told):
                encode_shards([todo], "ray", None, lambda _: None)
            assert ray.is_initialized()


class TestNoCluster:
    def test_ray_is_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "ray", None)
        with pytest.raises(PermanentError) as caught:
            next(encode_on_ray([], None))
        project = tomllib.loads((tiny.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        (ray,) = project["optional-dependencies"]["ray"]
        assert caught.value.action == f"pip install '{ray}'"

    def test_an_address_that_is_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RAY_ADDRESS", "nonsense")
        with pytest.raises(PermanentError, match=r"RAY_ADDRESS=nonsense: Invalid address(.|\n)*ray start --head"):
            next(encode_on_ray([], None))

    def test_a_cluster_that_does_not_answer(self, job_env: dict[str, str]) -> None:
        script = (
            "import asr_fine_tuner.ray_engine as engine\n"
            "engine._SECONDS_TO_CONNECT = 1\n"
            "try: next(engine.encode_on_ray([], None))\n"
            "except engine.TransientError as error: print(error.given)"
        )
        child = subprocess.run(
            [sys.executable, "-c", script],
            env={**job_env, "RAY_ADDRESS": "127.0.0.1:9"},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert "the cluster of RAY_ADDRESS=127.0.0.1:9 cannot be reached" in child.stdout, child.stderr
