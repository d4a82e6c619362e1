"""docker or podman, whose command lines agree in what is used here."""

from __future__ import annotations

import json
import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# What pip is told on this machine it is told in the build, too.
_SETTINGS = ("PIP_FIND_LINKS", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_CERT", "PYTORCH_INDEX")


@dataclass(frozen=True)
class Ended:
    """How a container ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def result(self) -> dict[str, Any]:
        """The last line of stdout, as jobs end it."""
        assert self.stdout.strip(), self.stderr
        result = json.loads(self.stdout.splitlines()[-1])
        assert isinstance(result, dict)
        return result


@dataclass(frozen=True)
class Online:
    """A network to share: that of a container, with the variables that say what is there."""

    container: str
    environment: tuple[str, ...]


@dataclass(frozen=True)
class Engine:
    """command: docker or podman. base: the image that images are made from."""

    command: str
    base: str

    def call(self, *arguments: str, timeout: float = 60) -> str:
        """Run a command of the engine, which has to succeed; returns its stdout."""
        done = subprocess.run(
            [self.command, *arguments], capture_output=True, text=True, check=False, timeout=timeout, cwd=ROOT
        )
        assert done.returncode == 0, f"{self.command} {' '.join(arguments)}: {done.stderr}\n{done.stdout[-3000:]}"
        return done.stdout

    def build(self, target: str, tag: str, **arguments: str) -> None:
        settings = {name: os.environ[name] for name in _SETTINGS if os.environ.get(name)}
        given = {"BASE_IMAGE": self.base, **settings, **arguments}
        options = [f"--build-arg={name}={value}" for name, value in given.items()]
        if self.command == "podman":
            # Without the packages that make networks it knows only this machine's, and it can mount folders for pip.
            options.append("--network=host")
            folders = {Path(value) for value in settings.values() if Path(value).is_dir()}
            folders |= {Path(value).parent for value in settings.values() if Path(value).is_file()}
            options += [f"--volume={folder}:{folder}:ro" for folder in sorted(folders)]
        self.call(
            "build", "--file=docker/Dockerfile", f"--target={target}", f"--tag={tag}", *options, ".", timeout=1500
        )

    def inspect(self, image: str) -> dict[str, Any]:
        (found,) = json.loads(self.call("image", "inspect", image))
        return found

    def options(self, volume: str | None, online: Online | None = None) -> list[str]:
        """What a cautious scheduler runs containers with: nothing to write to but one volume, and no rights."""
        options = ["--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges"]
        if online is None:
            options.append("--network=none")
        else:
            options += [f"--network=container:{online.container}", *(f"--env={it}" for it in online.environment)]
        if self.command == "podman":
            options.append("--read-only-tmpfs=false")  # or it would mount one on /tmp, /var/tmp and /run
        if volume:
            options.append(f"--volume={volume}:/data")
        return options

    def run(self, image: str, *arguments: str, options: list[str], timeout: float = 240) -> Ended:
        """Run a container to its end."""
        done = subprocess.run(
            [self.command, "run", "--rm", *options, image, *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )
        return Ended(done.returncode, done.stdout, done.stderr)

    def start(self, name: str, image: str, *arguments: str, options: list[str]) -> None:
        self.call("run", "--detach", f"--name={name}", *options, image, *arguments)

    def logs(self, name: str) -> str:
        """What a container has printed so far, stdout and stderr in one."""
        done = subprocess.run([self.command, "logs", name], capture_output=True, text=True, check=True)
        return done.stdout + done.stderr

    def wait_for(self, name: str, printed: str, seconds: float = 120) -> str:
        """Until a container has printed something; returns all that it has."""
        until = time.monotonic() + seconds
        while printed not in (logs := self.logs(name)):
            assert time.monotonic() < until, logs
            time.sleep(0.1)
        return logs
