"""launch.py: which of the job's processes this one is, by what torchrun puts into the environment."""

from __future__ import annotations

import pytest

from asr_fine_tuner import PermanentError
from asr_fine_tuner.launch import Launch, is_first_process, launch_of

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "node-0",
    "MASTER_PORT": "29500",
}


def test_what_torchrun_says_is_read() -> None:
    assert launch_of(TORCHRUN) == Launch(rank=5, processes=8, local_rank=1, local_processes=4)


@pytest.mark.parametrize("environment", [{}, {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, {"RANK": "3"}])
def test_a_single_process_is_the_first(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert launch_of(environment) == Launch()
    assert is_first_process()


@pytest.mark.parametrize(("rank", "first"), [("0", True), ("1", False)])
def test_of_several_the_one_of_rank_0_is_the_first(rank: str, first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", rank)
    assert is_first_process() == first


def test_several_processes_without_ranks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    assert is_first_process(), "somebody has to say what is wrong"
    with pytest.raises(PermanentError, match="WORLD_SIZE=2 in the environment, without RANK, LOCAL_RANK"):
        launch_of({"WORLD_SIZE": "2"})
