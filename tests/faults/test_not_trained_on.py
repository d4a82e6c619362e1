"""What the train job cannot train on or continue from: it ends with 2 and says what was found; nothing is published."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
from loopback.hub import LoopbackHub
from tiny_training import changed, clips_of, fine_tuning_of, given_of, write_artifact
from warm_jobs import Disturbance, WarmJobs

from asr_fine_tuner import TrainParameters
from asr_fine_tuner.artifact import SPLITS
from asr_fine_tuner.batches import BatchSizes, TrainingSteps
from asr_fine_tuner.checkpoints import newest_complete


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def _cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


@pytest.mark.parametrize("damage", [_flip, _cut, Path.unlink])
def test_a_damaged_artifact_is_told_before_the_model_is_read(
    damage: Callable[[Path], None], jobs: WarmJobs, parameters: TrainParameters, tmp_path: Path
) -> None:
    artifact = shutil.copytree(parameters.artifact_name, tmp_path / "artifact")
    damage(artifact / "train" / "data-00000.arrow")
    model = write_nothing_as_weights(Path(parameters.model_id), tmp_path / "model")
    ended = jobs.run("train", given_of(changed(parameters, artifact_name=str(artifact), model_id=str(model))))
    assert ended.returncode == 2, ended.stderr
    assert "train/data-00000.arrow" in ended.result["error"]["given"]
    assert not Path(str(parameters.output_dir)).exists()


def write_nothing_as_weights(model: Path, folder: Path) -> Path:
    copy = shutil.copytree(model, folder)
    (copy / "model.safetensors").write_bytes(b"")
    return copy


def test_an_artifact_of_another_model_is_told_with_both_values(jobs: WarmJobs, parameters: TrainParameters) -> None:
    ended = jobs.run("train", given_of(changed(parameters, model_id=str(tiny.wide_model()))))
    assert ended.returncode == 2, ended.stderr
    assert "mel bins: 80 in the artifact, 128 in the model" in ended.result["error"]["given"]


def test_checkpoints_none_of_which_is_whole(jobs: WarmJobs, parameters: TrainParameters) -> None:
    run = Path(str(parameters.output_dir))
    given = given_of(changed(parameters, max_steps=3, eval_steps=3, save_steps=1))
    killed = jobs.run("train", given, disturbance=Disturbance(folder=str(run), at="os.mkdir .checkpoint-3.tmp"))
    assert killed.stdout == ""
    for name in ("checkpoint-1/optimizer.pt", "checkpoint-2/model.safetensors"):
        _cut(run / name)
    ended = jobs.run("train", given)
    assert ended.returncode == 2, ended.stderr
    assert "none of 2 checkpoints is complete" in ended.result["error"]["given"]
    assert "checkpoint-2 is damaged and left aside: model.safetensors" in ended.stderr
    assert not (run / "model").exists()


def test_a_clip_that_is_not_a_number(
    jobs: WarmJobs, hub: LoopbackHub, parameters: TrainParameters, tmp_path: Path
) -> None:
    artifact = Path(str(parameters.artifact_name))
    splits = {split: clips_of(artifact, split) for split in SPLITS}
    packer = fine_tuning_of(changed(parameters, output_dir=str(tmp_path / "asked"))).packer
    *before, last_of_epoch = TrainingSteps(packer, BatchSizes(parameters.train_batch_size, micro=1))
    (clip,) = last_of_epoch[0].clips
    features = splits["train"][clip].features.copy()
    features[3, 5] = np.nan
    splits["train"][clip] = replace(splits["train"][clip], features=features)
    made = write_artifact(tmp_path / "nan", Path(parameters.model_id), artifact, splits)
    given = changed(parameters, artifact_name=str(made), eval_steps=6, save_steps=1, publish=True)
    ended = jobs.run("train", given_of(given), env={"HF_TOKEN": "hf_test"})
    assert ended.returncode == 2, ended.stderr
    assert ended.result["error"]["given"] == f"loss nan at step {len(before) + 1}"
    last = newest_complete(Path(str(parameters.output_dir)))
    assert last
    assert last.name == f"checkpoint-{len(before)}"
    assert not hub.requested("/commit/")
