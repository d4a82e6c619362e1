"""The published model as its users meet it: transformers' pipeline, by the repository's name, in a fresh process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import soundfile
from loopback.hub import LoopbackHub
from tiny_training import DEMO, changed

from asr_fine_tuner import TrainParameters
from asr_fine_tuner.artifact import ArtifactSplit
from asr_fine_tuner.audio import decode
from asr_fine_tuner.training import train

# Samples rather than a path: the pipeline reads paths with the program ffmpeg, which is not everywhere.
TRANSCRIBE = """
import json, sys, soundfile
from transformers import pipeline

recognise = pipeline("automatic-speech-recognition", sys.argv[1])
samples, rate = soundfile.read(sys.argv[2], dtype="float32")
print(json.dumps(recognise({"raw": samples, "sampling_rate": rate})))
"""


def test_the_pipeline_transcribes_a_file_with_the_published_model(
    hub: LoopbackHub,
    memorised_again: TrainParameters,
    job_env: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    result = train(changed(memorised_again, publish=True))
    clips = ArtifactSplit(Path(str(memorised_again.artifact_name)), "test")
    rows = {
        row["audio"]["path"]: row for row in pq.read_table(DEMO / "dataset/it/train-00000-of-00001.parquet").to_pylist()
    }
    soundfile.write(tmp_path / "clip.wav", decode(rows[clips.ids[1]]["audio"]["bytes"], 16_000, 4.0), 16_000)

    done = subprocess.run(
        [sys.executable, "-c", TRANSCRIBE, str(result.repo_id), str(tmp_path / "clip.wav")],
        cwd=tmp_path,
        env=job_env,
        text=True,
        capture_output=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    # Without being told language or task: they are in the model's generation_config.
    assert json.loads(done.stdout.splitlines()[-1])["text"].strip() == clips.texts[1]
    assert hub.requested(f"{result.repo_id}/resolve/.*/model.safetensors")
