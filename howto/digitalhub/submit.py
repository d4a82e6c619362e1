"""Submit both jobs to DigitalHub, one after the other. Change the names below, then:

python howto/digitalhub/submit.py container    in the images of docker/Dockerfile
python howto/digitalhub/submit.py python       as python functions, which install this package
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import digitalhub

PROJECT = "asr"
# Where the two targets of docker/Dockerfile were pushed, which need --build-arg EXTRA_PACKAGES="digitalhub
# digitalhub-runtime-container", and the user and group that they run as.
IMAGES = "ghcr.io/your-name"
VERSION = "0.1.0"
USER = 65532
# What pip installs this project from: a python function imports its handler from it.
PACKAGE = f"asr-fine-tuner[digitalhub] @ git+https://github.com/your-name/asr-fine-tuner@v{VERSION}"
# Secrets of the project; take out what it does not have.
SECRETS = ["HF_TOKEN", "WANDB_API_KEY"]
# A shared volume outlives a run; the platform makes a persistent_volume_claim anew for each.
VOLUME = {"volume_type": "shared_volume", "name": "asr", "mount_path": "/data"}
# As whoever runs the platform calls a profile with a GPU.
GPU = {"profile": "1xa100"}
CORES = {"resources": {"cpu": "8", "mem": "16Gi"}}
# A python function installs its packages when it starts, torch among them; without a size it has 1Gi for that.
INSTALLED = {"disk": "30Gi"}

PREPROCESS = {
    "dataset_name": "google/fleurs",
    "language_code": "it",
    "text_column": "raw_transcription",
    "model_id": "openai/whisper-small",
    "artifact_name": "fleurs-it",
}
TRAIN = {
    "artifact_name": "fleurs-it",
    "model_id": "openai/whisper-small",
    "model_name": "whisper-small-it",
    "max_steps": 1000,
    "eval_steps": 250,
    "save_steps": 250,
    "warmup_steps": 100,
}


def submit_containers(project: Any) -> None:
    """In place of the images' own entry points, those that know the project. All else that is written is on `/data`."""
    jobs: dict[str, tuple[Mapping[str, object], Mapping[str, object]]] = {
        "preprocess": (PREPROCESS, CORES),
        "train": (TRAIN, GPU),
    }
    for job, (parameters, where) in jobs.items():
        function = project.new_function(
            f"asr-{job}", kind="container", image=f"{IMAGES}/asr-{job}:{VERSION}", command="python"
        )
        flags = [f"--{name}={value}" for name, value in parameters.items()]
        run = function.run(
            action="job",
            args=["-m", "asr_fine_tuner.digitalhub_jobs", job, *flags],
            secrets=SECRETS,
            volumes=[VOLUME],
            run_as_user=USER,
            fs_group=USER,
            **where,
        )
        wait_for(run)


def submit_python_functions(project: Any) -> None:
    functions: dict[str, tuple[Mapping[str, object], Mapping[str, object]]] = {
        "preprocess_dataset": (PREPROCESS, {"resources": {**CORES["resources"], **INSTALLED}}),
        "train_and_log_model": (
            {**TRAIN, "output_dir": f"{VOLUME['mount_path']}/outputs/{TRAIN['model_name']}"},
            {**GPU, "resources": INSTALLED},
        ),
    }
    for handler, (parameters, where) in functions.items():
        function = project.new_function(
            handler.replace("_", "-"),
            kind="python",
            python_version="PYTHON3_11",
            code=f"from asr_fine_tuner.digitalhub_functions import {handler}",
            handler=handler,
            requirements=[PACKAGE],
        )
        run = function.run(
            action="job",
            parameters=parameters,
            secrets=SECRETS,
            volumes=[VOLUME],
            envs=[{"name": "HF_HOME", "value": f"{VOLUME['mount_path']}/huggingface"}],
            **where,
        )
        wait_for(run)


def wait_for(run: Any) -> None:
    run.wait()
    if run.status.state != "COMPLETED":
        sys.exit(f"{run.key}: {run.status.state}: {run.status.message}")


if __name__ == "__main__":
    kinds = {"container": submit_containers, "python": submit_python_functions}
    if sys.argv[1:] not in [[kind] for kind in kinds]:
        sys.exit(f"usage: python {sys.argv[0]} {'|'.join(kinds)}")
    kinds[sys.argv[1]](digitalhub.get_or_create_project(PROJECT))
