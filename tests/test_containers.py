"""The Compose file and what the images are made of, without an engine; tests/image runs the images themselves."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_imports import imports_of, our_modules, tree_of

from asr_fine_tuner.command_line import read_parameters
from asr_fine_tuner.parameters import JobParameters, PreprocessParameters, TrainParameters

ROOT = Path(__file__).resolve().parent.parent
COMPOSE = ROOT / "docker" / "compose.yaml"
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"]
PAGE = (ROOT / "howto" / "docker.md").read_text(encoding="utf-8")
COMMANDS = [
    shlex.split(line)
    for block in re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
]
JOBS: dict[str, type[JobParameters]] = {"preprocess": PreprocessParameters, "train": TrainParameters}
# Variables by which the libraries are told where to write.
WRITTEN_TO = {
    "CUDA_CACHE_PATH", "HF_HOME", "HOME", "MPLCONFIGDIR", "NUMBA_CACHE_DIR", "RAY_TMPDIR", "TMPDIR",
    "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "WANDB_DIR",
    "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME",
}  # fmt: skip


def test_the_compose_file_follows_the_specification() -> None:
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(COMPOSE)]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("service", ["preprocess", "train", "demo"])
def test_services_are_made_and_run_as_the_images_are_meant(service: str) -> None:
    given = SERVICES[service]
    build = given["build"]
    assert (COMPOSE.parent / build["context"] / build["dockerfile"]).samefile(ROOT / "docker" / "Dockerfile")
    assert re.search(rf"^FROM \S+ AS {build['target']}$", DOCKERFILE, re.MULTILINE)
    assert set(build.get("args", {})) <= set(re.findall(r"^ARG (\w+)", DOCKERFILE, re.MULTILINE))
    assert given["read_only"]
    assert [volume for volume in given["volumes"] if not volume.endswith(":ro")] == ["data:/data"]
    assert given["profiles"], "`up` would start it"
    assert given["env_file"] == [{"path": "../.env", "required": False}]


def test_all_that_is_written_goes_to_the_volume() -> None:
    folders = dict(re.findall(r"^(?:ENV|   ) (\w+)=(/\S*?)(?: \\)?$", DOCKERFILE, re.MULTILINE))
    assert {name for name, folder in folders.items() if Path(folder).is_relative_to("/data")} == WRITTEN_TO


def test_the_preprocess_image_lacks_nothing_that_its_job_imports() -> None:
    (left_out,) = re.findall(r"uninstall --quiet --yes \\\n(.*)$", DOCKERFILE, re.MULTILINE)
    reached, waiting = set[str](), {"preprocessing", "outcome"}
    while waiting:
        reached |= waiting
        waiting = {name for module in waiting for name in our_modules(tree_of(module))} - reached
    imported = {name.partition(".")[0] for module in reached for name in imports_of(tree_of(module))}
    assert {"librosa", "torch", "transformers"} <= imported
    assert not imported & set(left_out.split())


def test_the_images_have_the_version_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert f"\nARG VERSION={project['version']}\n" in DOCKERFILE


def test_only_what_the_images_are_made_of_goes_to_the_engine() -> None:
    first, *rest = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()[1:]
    assert first == "*"
    allowed = {line[1:] for line in rest if line.startswith("!")}
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)
    assert allowed == {name for line in copied for name in line.split()}


def test_images_of_the_page_can_be_built() -> None:
    builds = [command for command in COMMANDS if command[:2] == ["docker", "build"]]
    assert {command[command.index("--target") + 1] for command in builds} == set(JOBS)
    given = {command[at + 1] for command in builds for at, part in enumerate(command) if part == "--build-arg"}
    known = re.findall(r"^ARG (\w+)", DOCKERFILE, re.MULTILINE)
    assert {argument.partition("=")[0] for argument in given} <= set(known)


@pytest.mark.parametrize("command", [command for command in COMMANDS if "run" in command and command[-1] != "demo"])
def test_the_jobs_understand_the_commands_of_the_page(command: list[str]) -> None:
    """Parameters follow the image or the service of a job; where the entry point is another, the module it runs."""
    if "--entrypoint" in command:
        last = max(at for at, part in enumerate(command) if part in ("jobs.preflight", "jobs.train"))
        kind: type[JobParameters] = TrainParameters
    else:
        name = re.compile(f"(?:asr-)?({'|'.join(JOBS)})(?:-cpu)?")
        last, job = next((at, found[1]) for at, part in enumerate(command) if (found := name.fullmatch(part)))
        kind = JOBS[job]
    given = read_parameters(kind, "job", command[last + 1 :])
    assert "fleurs" in f"{given.dataset_name}{given.artifact_name}" or given.dataset_name == "/speech"
