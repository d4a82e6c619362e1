"""Training steps alone, as a child process that ends with the last of them.

    python -m benchmarks.training_steps ours MODEL ARTIFACT_NAME OUTPUT STEPS BATCH_SIZE
    python -m benchmarks.training_steps plain MODEL PREPARED OUTPUT STEPS BATCH_SIZE

Both recipes run as they are; a hook that PyTorch calls after every optimizer step holds the watch. The first step warms
up, and the time from its end to the end of the last one is what counts: reading and collating clips, forward, backward
and the optimizer. The result is `seconds`, the `audio_seconds` that the encoder was given in them without padding, the
`device`, and `gpu_bytes`, the most that tensors took on it (null without a GPU).
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import time
from pathlib import Path

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from benchmarks.device import device_name, gpu_bytes
from benchmarks.train import WARM_UP_STEPS

FRAMES_PER_SECOND = 100  # of log-mel features


class AudioMeter:
    """Adds up the audio that encoders are given while they train, without the padding behind it.

    Padding is the last frame again and again, in features of either recipe.
    """

    def __init__(self) -> None:
        self._frames = torch.zeros(())
        torch.nn.modules.module.register_module_forward_pre_hook(self._add)

    @property
    def seconds(self) -> float:
        return float(self._frames) / FRAMES_PER_SECOND

    def _add(self, module: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        # The first layer of the encoder; its other convolution has a stride of two.
        if not (isinstance(module, torch.nn.Conv1d) and module.stride == (1,) and module.training):
            return
        features = given[0].detach()  # [batch, n_mels, window_frames]
        sounding = (features != features[:, :, -1:]).any(dim=1)
        # Without a glance at the numbers, for which a GPU would have to be waited for.
        self._frames = self._frames.to(features.device)
        self._frames += (sounding * torch.arange(sounding.shape[1], device=features.device)).amax(dim=1).sum()


def end_after(steps: int) -> None:
    """From now on the `steps`th step of an optimizer ends the process, with the result on stdout."""
    taken = 0
    began = heard = 0.0
    meter = AudioMeter()

    def count(*_: object) -> None:
        nonlocal taken, began, heard
        taken += 1
        if taken not in (WARM_UP_STEPS, steps):
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if taken == WARM_UP_STEPS:
            began, heard = time.monotonic(), meter.seconds
            return
        measured = {"seconds": time.monotonic() - began, "audio_seconds": meter.seconds - heard}
        result = {**measured, "device": device_name(), "gpu_bytes": gpu_bytes()}
        # stdout is a file, and the job may have put something else in its place.
        os.write(1, f"{json.dumps(result)}\n".encode())
        os._exit(0)

    register_optimizer_step_post_hook(count)


def ours(model: str, artifact_name: str, output: str, steps: int, batch_size: int) -> None:
    """The train job, with what it does by default."""
    given = {
        "model_id": model,
        "artifact_name": artifact_name,
        "output_dir": output,
        "train_batch_size": batch_size,
        "max_steps": steps,
        "warmup_steps": 1,
        # The plain recipe does not evaluate before it trains.
        "evaluate_base": "false",
    }
    sys.argv = ["jobs.train", *(f"--{name}={value}" for name, value in given.items())]
    runpy.run_module("jobs.train", run_name="__main__")


def plain(model: str, prepared: str, output: str, steps: int, batch_size: int) -> None:
    from datasets import load_from_disk

    from benchmarks.plain_recipe import Settings, load_processor, trainer_of

    settings = Settings(train_batch_size=batch_size, max_steps=steps)
    splits = load_from_disk(prepared)
    trainer_of(splits, load_processor(Path(model)), Path(model), Path(output), settings).train()


def main(recipe: str, model: str, clips: str, output: str, steps: str, batch_size: str) -> None:
    end_after(int(steps))
    {"ours": ours, "plain": plain}[recipe](model, clips, output, int(steps), int(batch_size))


if __name__ == "__main__":
    main(*sys.argv[1:])
    sys.exit("training ended before its last step")
