"""Runs the two jobs in sequence on what this folder holds, then transcribes a clip with the base and the tuned model.

The jobs know nothing of it: what makes this the demo is only the parameter values below. `make demo` calls it; it needs
neither network nor GPU nor token, and takes about two minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

DEMO = Path(__file__).resolve().parent
ROOT = DEMO.parent
# The libraries' bars and warnings about each other are not what a demo is about.
QUIET = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"}
PREPROCESS: dict[str, object] = {
    "dataset_name": "demo/dataset",
    "language_code": "it",
    "model_id": "demo/model",
    "artifact_name": "demo-it",
}
TRAIN: dict[str, object] = {
    "artifact_name": "demo-it",
    "model_id": "demo/model",
    "model_name": "whisper-demo-it",
    "max_steps": 300,
    "learning_rate": 1.5e-3,
    "warmup_steps": 30,
    "train_batch_size": 16,
    "eval_batch_size": 48,
    "eval_steps": 100,
    "save_steps": 100,
    "max_sequence_length": 64,
}
# What a fine-tuning that works reaches on voices it has not heard, as normalised WER.
BASE_AT_LEAST, TUNED_BELOW = 0.60, 0.15


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "demo", help="folder for cache and model")
    output: Path = parser.parse_args(arguments).output.absolute()
    os.environ.update(QUIET)
    began = time.monotonic()
    run_job("preprocess", PREPROCESS, output)
    result = run_job("train", {**TRAIN, "output_dir": str(output / "run")}, output)
    reference = (DEMO / "clip.txt").read_text(encoding="utf-8").strip()
    print(f"\n{DEMO.name}/clip.flac, a voice that training has not heard:")
    print(f"  reference  {reference}")
    print(f"  base       {transcribe(DEMO / 'model', language='it')}")
    print(f"  tuned      {transcribe(Path(result['model_dir']))}")
    base, tuned = result["metrics"]["test_base_wer"], result["metrics"]["test_tuned_wer"]
    print(f"\nnormalised WER on held-out voices: {base:.1%} -> {tuned:.1%}, in {time.monotonic() - began:.0f} s")
    print(f"model: {result['model_dir']}")
    if base <= BASE_AT_LEAST or tuned >= TUNED_BELOW:
        print(f"expected more than {BASE_AT_LEAST:.0%} before and less than {TUNED_BELOW:.0%} after", file=sys.stderr)
        return 1
    return 0


def run_job(job: str, parameters: dict[str, object], output: Path) -> dict[str, Any]:
    flags = [part for name, value in parameters.items() for part in (f"--{name}", str(value))]
    print(f"\n$ {shlex.join(['python', '-m', f'jobs.{job}', *flags])}", flush=True)
    # From a folder without a .env, and with no setting of whoever runs this: the demo is the same everywhere.
    output.mkdir(parents=True, exist_ok=True)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("ASR_", "HF_", "WANDB_"))}
    done = subprocess.run(
        [sys.executable, "-m", f"jobs.{job}", *(_absolute(flag) for flag in flags)],
        cwd=output,
        env={
            **inherited,
            **QUIET,
            "HF_HOME": str(output / "cache"),
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
        },
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        sys.exit(done.returncode)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _absolute(flag: str) -> str:
    return str(ROOT / flag) if flag.startswith("demo/") else flag


def transcribe(model: Path, **generate: str) -> str:
    import soundfile
    from transformers import pipeline

    samples, rate = soundfile.read(DEMO / "clip.flac", dtype="float32")
    recognise = pipeline("automatic-speech-recognition", str(model))
    return str(recognise({"raw": samples, "sampling_rate": rate}, generate_kwargs=generate)["text"]).strip()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
