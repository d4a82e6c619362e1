"""tracking.py with the real W&B client: offline, read back from its log; unreachable; broken; absent."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest
from loopback.wandb import API_KEY, LoopbackWandb
from wandb_log import LoggedRun, read_run

from asr_fine_tuner.tracking import SamplePrediction, Tracker, Trackers, start_tracking

CANARY = "0123456789abcdef0123456789abcdef01234567"
ROWS = [
    SamplePrediction("1.wav", "l'ora è tarda", "lora tarda", "l'ora è tarda", 0.0),
    SamplePrediction("2.wav", "buongiorno", None, "buon giorno", 2.0),
]


@pytest.fixture(autouse=True)
def _environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name in ("WANDB_ERROR_REPORTING", "WANDB_DATA_DIR", "WANDB_CACHE_DIR"):
        # So that what start_tracking sets is undone.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    yield
    if "wandb" in sys.modules:
        sys.modules["wandb"].teardown()


def _start(folder: Path, **changes: str) -> Tracker:
    return start_tracking(
        run_id=changes.get("run_id", "job-1"),
        name="whisper-small-it",
        parameters={"learning_rate": 1e-5, "freeze_encoder": False},
        dataset_summary={"id": "google/fleurs", "train_hours": 9.0},
        directory=folder,
    )


def _logged(folder: Path) -> LoggedRun:
    import wandb

    # The client's service process writes the last records while it closes, as it does when a job ends.
    wandb.teardown()
    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    return read_run(path)


def test_an_offline_run_holds_what_was_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    tracker = _start(tmp_path)
    assert tracker.url is None
    tracker.log({"train/loss": 2.0, "train/learning_rate": 1e-5}, step=25)
    tracker.log({"train/loss": 1.0}, step=50)
    tracker.log({"eval/wer": 0.25}, step=50)
    # What a job does that continues from the checkpoint of step 25.
    tracker.log({"train/loss": 0.9}, step=50)
    tracker.log_predictions(50, ROWS)
    tracker.finish({"test/wer": 0.2, "best_step": 50}, exit_code=0)

    run = _logged(tmp_path)
    assert (run.id, run.name, run.project) == ("job-1", "whisper-small-it", "asr-fine-tuner")
    assert run.config["learning_rate"] == 1e-5
    assert run.config["dataset"] == {"id": "google/fleurs", "train_hours": 9.0}
    losses = [(row["step"], row["train/loss"]) for row in run.history if "train/loss" in row]
    assert losses == [(25, 2.0), (50, 1.0), (50, 0.9)]
    assert [(row["step"], row["eval/wer"]) for row in run.history if "eval/wer" in row] == [(50, 0.25)]
    assert run.summary["test/wer"] == 0.2
    assert run.exit_code == 0

    (table,) = tmp_path.glob("wandb/offline-run-*/files/media/table/predictions*.table.json")
    content = json.loads(table.read_text(encoding="utf-8"))
    assert content["columns"] == ["id", "reference", "base", "prediction", "wer"]
    assert content["data"][1] == ["2.wav", "buongiorno", None, "buon giorno", 2.0]


def test_nothing_of_the_machine_or_its_secrets_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", CANARY)
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    tracker = _start(tmp_path)
    print("printed by the job")
    tracker.log({"train/loss": 1.0}, step=1)
    tracker.finish({}, exit_code=0)
    run = _logged(tmp_path)
    assert run.host == "undisclosed"
    assert "git" not in run.kinds
    assert "output" not in run.kinds
    assert "output_raw" not in run.kinds
    for secret in (CANARY, "hf_canary", "printed by the job", socket.gethostname(), sys.executable, str(Path.cwd())):
        assert len(secret) < 4 or secret.encode() not in run.raw, secret
    files = [path.name for path in tmp_path.glob("wandb/offline-run-*/files/**/*") if path.is_file()]
    assert not {"wandb-metadata.json", "requirements.txt", "output.log"} & set(files)
    assert not (tmp_path / "home").exists()


def test_the_environment_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_RUN_ID", "from-the-scheduler")
    monkeypatch.setenv("WANDB_PROJECT", "my-project")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "volume"))
    _start(tmp_path / "elsewhere").finish({}, exit_code=2)
    run = _logged(tmp_path / "volume")
    assert (run.id, run.project, run.exit_code) == ("from-the-scheduler", "my-project", 2)
    assert not (tmp_path / "elsewhere").exists()


def test_an_unreachable_server_leaves_an_offline_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "2")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", CANARY)
    with caplog.at_level(logging.INFO):
        tracker = _start(tmp_path)
    assert "W&B cannot be used online" in caplog.text
    assert "wandb sync" in caplog.text
    assert CANARY not in caplog.text
    tracker.log({"train/loss": 1.0}, step=1)
    tracker.finish({"test/wer": 0.5}, exit_code=0)
    run = _logged(tmp_path)
    assert run.id == "job-1"
    assert run.history[0]["train/loss"] == 1.0


def test_a_key_that_is_none_leaves_an_offline_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "2")
    monkeypatch.setenv("WANDB_API_KEY", "short")
    _start(tmp_path).finish({}, exit_code=0)
    assert _logged(tmp_path).exit_code == 0


def test_a_failing_tracker_is_said_once_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    tracker = _start(tmp_path)
    tracker.log({"train/loss": 1.0}, step=1)
    tracker.finish({}, exit_code=0)
    # A finished run takes nothing more: the client raises.
    tracker.log({"train/loss": 1.0}, step=2)
    tracker.log_predictions(2, ROWS)
    tracker.finish({"test/wer": 0.5}, exit_code=0)
    tracker.log({"train/loss": 1.0}, step=3)
    assert caplog.text.count("W&B does not take the metrics") == 1
    assert caplog.text.count("W&B does not take the sample predictions") == 1


def test_a_folder_that_cannot_be_written_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    (tmp_path / "file").write_text("not a folder", encoding="utf-8")
    tracker = _start(tmp_path / "file")
    tracker.log({"train/loss": 1.0}, step=1)
    tracker.finish({}, exit_code=0)
    assert "W&B cannot be used offline" in caplog.text


@pytest.mark.parametrize(
    "environment", [{}, {"WANDB_MODE": "disabled", "WANDB_API_KEY": CANARY}, {"WANDB_MODE": "online"}]
)
def test_without_a_key_nothing_is_imported_and_nothing_written(tmp_path: Path, environment: dict[str, str]) -> None:
    script = (
        "import sys; from pathlib import Path; from asr_fine_tuner.tracking import start_tracking\n"
        "t = start_tracking(run_id='1', name='n', parameters={}, dataset_summary={}, directory=Path(sys.argv[1]))\n"
        "t.log({'train/loss': 1.0}, step=1); t.log_predictions(1, []); t.finish({}, exit_code=0)\n"
        "assert t.url is None and 'wandb' not in sys.modules"
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "out")], check=True, env=clean | environment)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackWandb]:
    with LoopbackWandb() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", API_KEY)
        yield server
        # Before the server goes, or the client would wait for it.
        sys.modules["wandb"].teardown()
        assert not server.crashes


def test_a_continued_job_continues_its_run(tmp_path: Path, server: LoopbackWandb) -> None:
    tracker = _start(tmp_path)
    assert tracker.url == f"{server.url}/tester/asr-fine-tuner/runs/job-1"
    tracker.log({"train/loss": 2.0}, step=25)
    tracker.log({"train/loss": 1.0}, step=50)
    tracker.finish({}, exit_code=143)
    assert server.run().exit_code == 143

    tracker = _start(tmp_path)
    tracker.log({"train/loss": 0.9}, step=50)
    tracker.log_predictions(50, ROWS)
    tracker.finish({"test/wer": 0.2}, exit_code=0)
    run = server.run()
    assert (run.sessions, run.exit_code) == (2, 0)
    assert run.values("train/loss") == [2.0, 1.0, 0.9]
    assert run.summary["test/wer"] == 0.2
    assert run.config["learning_rate"]["value"] == 1e-5
    (table,) = [content for name, content in run.files.items() if name.startswith("media/table/predictions")]
    assert json.loads(table)["data"][0][3] == "l'ora è tarda"


def test_a_server_that_goes_away_costs_a_bounded_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "2")
    monkeypatch.setenv("WANDB_API_KEY", API_KEY)
    with LoopbackWandb() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        tracker = _start(tmp_path)
    tracker.log({"train/loss": 1.0}, step=1)
    began = time.monotonic()
    tracker.finish({"test/wer": 0.5}, exit_code=0)
    sys.modules["wandb"].teardown()
    assert time.monotonic() - began < 20
    assert "wandb sync" in caplog.text
    (log,) = tmp_path.glob("wandb/run-*/run-*.wandb")
    assert read_run(log).history[0]["train/loss"] == 1.0


class _Kept:
    """A tracker that keeps what it is told."""

    def __init__(self, url: str | None) -> None:
        self.url = url
        self.told: list[tuple[object, ...]] = []

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self.told.append((dict(metrics), step))

    def log_predictions(self, step: int, rows: Iterable[SamplePrediction]) -> None:
        self.told.append((step, list(rows)))

    def finish(self, summary: Mapping[str, float | int | str | None], exit_code: int) -> None:
        self.told.append((dict(summary), exit_code))


def test_several_trackers_are_told_the_same() -> None:
    kept = [_Kept(None), _Kept("https://a"), _Kept("https://b")]
    trackers: Tracker = Trackers(*kept)
    trackers.log({"train/loss": 2.0}, 1)
    trackers.log_predictions(1, iter(ROWS))
    trackers.finish({"test_tuned_wer": 0.5}, 0)
    assert trackers.url == "https://a"
    for tracker in kept:
        assert tracker.told == [({"train/loss": 2.0}, 1), (1, ROWS), ({"test_tuned_wer": 0.5}, 0)]
