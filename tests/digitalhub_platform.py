"""DigitalHub as far as this machine goes: the real SDK with a core and an S3 on the loopback interface, and pods that
do with the run of a python function what the platform's own do."""

from __future__ import annotations

import base64
import contextlib
import logging
import os
import runpy
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from loopback.digitalhub import TOKEN, HubProject, LoopbackDigitalHub
from loopback.hub_answers import Account

if TYPE_CHECKING:
    from digitalhub.entities.project._base.entity import Project
    from loopback.hub import LoopbackHub

ROOT = Path(__file__).resolve().parent.parent
BUCKET = "datalake"
PROJECT = "asr"
HF_TOKEN = "hf_OfTheProjectOnly"
SUBMIT = ROOT / "howto" / "digitalhub" / "submit.py"
# What the howto submits, made small.
SMALL = {"num_workers": 1, "max_train_samples": 10, "max_eval_samples": 5, "text_column": None}
SHORT = {
    "max_steps": 4,
    "eval_steps": 2,
    "save_steps": 2,
    "warmup_steps": 1,
    "logging_steps": 1,
    "train_batch_size": 2,
    "max_sequence_length": 12,
}
Submit = Callable[[str], list[dict[str, Any]]]


class ContainerFailed(Exception):
    """A container has ended with this exit code."""


@dataclass(frozen=True)
class Platform:
    """core: what the SDK sends its requests to. s3: a client of the storage. folder: where pods have their files."""

    core: LoopbackDigitalHub
    s3: Any
    folder: Path
    monkeypatch: pytest.MonkeyPatch

    @property
    def held(self) -> HubProject:
        """What core has of the project."""
        return self.core.projects[PROJECT]

    def project(self) -> Project:
        import digitalhub

        return digitalhub.get_or_create_project(PROJECT)

    def function(self, handler: str) -> Any:
        """A python function as the howto makes it, in this environment instead of one of its own."""
        return self.project().new_function(
            handler.replace("_", "-"),
            kind="python",
            python_version="PYTHON3_11",
            code=f"from asr_fine_tuner.digitalhub_functions import {handler}",
            handler=handler,
        )

    def submit(self, handler: str, parameters: Mapping[str, object], **more: object) -> str:
        """Submit a run of a python function; returns its id."""
        run = self.function(handler).run(action="job", parameters=dict(parameters), **more)
        return str(run.id)

    def function_of(self, run: Mapping[str, Any]) -> dict[str, Any]:
        return self.held.entities["functions"][run["spec"]["function"].rpartition(":")[2]]

    def objects(self, prefix: str = "") -> dict[str, bytes]:
        """Every object of the storage whose key begins so, without the part that all have in common."""
        listed = self.s3.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])
        bodies = {entry["Key"]: self.s3.get_object(Bucket=BUCKET, Key=entry["Key"])["Body"].read() for entry in listed}
        return {key.removeprefix(prefix): body for key, body in bodies.items()}

    def files_of(self, entity: Mapping[str, Any]) -> dict[str, bytes]:
        """The files of an artifact or a model, by their names."""
        return self.objects(entity["spec"]["path"].removeprefix(f"s3://{BUCKET}/"))

    @contextlib.contextmanager
    def _pod(self, run_id: str) -> Iterator[dict[str, Any]]:
        """The run as core has it, in the environment that its pod has: the run's own variables, the secrets that it
        names, and which run it is."""
        submitted = self.held.entities["runs"][run_id]
        spec, submitted["status"]["state"] = submitted["spec"], "RUNNING"
        given = {entry["name"]: entry["value"] for entry in spec.get("envs") or []}
        secrets = {name: self.held.secrets[name] for name in spec.get("secrets") or []}
        with self.monkeypatch.context() as pod:
            for name, value in {**given, **secrets, "PROJECT_NAME": PROJECT, "RUN_ID": run_id}.items():
                pod.setenv(name, value)
            _forget_project()
            try:
                yield submitted
            finally:
                _forget_project()

    def execute(self, run_id: str, **changed: object) -> dict[str, Any]:
        """Do in this process what the platform's pod does for a run, and return the run as it is then.

        changed: parameters that take the place of those that were submitted.

        Raises ContainerFailed, or whatever a python function raises, with the run in the state ERROR.
        """
        with self._pod(run_id) as submitted:
            execute = self._execute_function if submitted["kind"].startswith("python") else self._execute_container
            state = "ERROR"
            try:
                execute(submitted, changed)
                state = "COMPLETED"
            finally:
                ended = self.held.entities["runs"][run_id]
                ended["status"]["state"] = state
        return ended

    def _execute_container(self, submitted: Mapping[str, Any], changed: Mapping[str, object]) -> None:
        from asr_fine_tuner.digitalhub_jobs import main

        command = [self.function_of(submitted)["spec"]["command"], *submitted["spec"]["args"][:2]]
        assert command == ["python", "-m", main.__module__]
        if code := main([*submitted["spec"]["args"][2:], *(f"--{name}={value}" for name, value in changed.items())]):
            raise ContainerFailed(code)

    def _execute_function(self, submitted: dict[str, Any], changed: Mapping[str, object]) -> None:
        """It takes the source from the function, the parameters and inputs from the run, and keeps what the function
        leaves in the run's status."""
        from digitalhub import get_project, get_run
        from digitalhub_runtime_python.utils.configuration import import_function_and_init_from_source
        from digitalhub_runtime_python.utils.inputs import compose_inputs
        from digitalhub_runtime_python.utils.outputs import build_new_status, parse_outputs

        submitted["spec"]["parameters"] = {**submitted["spec"].get("parameters", {}), **changed}
        source = self.function_of(submitted)["spec"]["source"]
        root = self.folder / submitted["id"]
        root.mkdir()
        (root / "main.py").write_bytes(base64.b64decode(source["base64"]))
        project = get_project(PROJECT)
        run = get_run(submitted["id"], project=PROJECT)
        run.start_execution()
        try:
            run.spec.inputs = run.inputs(as_dict=True)
            handler, _ = import_function_and_init_from_source(source, root)
            spec = run.spec.to_dict()
            arguments = compose_inputs(spec.get("inputs", {}), spec.get("parameters", {}), False, handler, project)
            made = parse_outputs(handler(**arguments), PROJECT, run.key)
            run.refresh()
            run.set_status({**build_new_status(PROJECT, made), **run.status.to_dict()})
            run.save(update=True)
        finally:
            run.end_execution()


def _forget_project() -> None:
    """The SDK keeps the context of a project, with the run that it was made in, for the life of the process."""
    from digitalhub.context.api import delete_context

    delete_context(PROJECT)


@pytest.fixture(scope="session")
def _s3_server() -> Iterator[str]:
    """The address of an S3 stand-in."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").disabled = True  # a line for each request, to streams that a test may have closed
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def platform(_s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Platform]:
    """An empty platform, whose address and credentials are in the environment as they are in a pod's."""
    import boto3
    from digitalhub.stores.client.common.config import reset_client_config

    folder = tmp_path / "pods"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for name in [name for name in os.environ if name.startswith(("AWS_", "DHCORE_", "DH_", "S3_"))]:
        monkeypatch.delenv(name)
    with LoopbackDigitalHub() as core:
        environment = {
            "DHCORE_ENDPOINT": core.url,
            "DHCORE_ACCESS_TOKEN": TOKEN,
            "DHCORE_DEFAULT_FILES_STORE": f"s3://{BUCKET}",
            "AWS_ENDPOINT_URL": _s3_server,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
        }
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        s3 = boto3.client("s3", endpoint_url=_s3_server, region_name="us-east-1")
        s3.create_bucket(Bucket=BUCKET)
        reset_client_config()  # the SDK's client, which keeps addresses and credentials
        yield Platform(core, s3, folder, monkeypatch)
        _forget_project()
        reset_client_config()
        for key in [entry["Key"] for entry in s3.list_objects_v2(Bucket=BUCKET).get("Contents", [])]:
            s3.delete_object(Bucket=BUCKET, Key=key)
        assert not core.crashes, "the loopback DigitalHub did not understand a request"


@pytest.fixture
def submitted(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> Submit:
    """Run the howto's file; the platform says of each run at once that it is completed. Returns the runs."""
    project = platform.project()
    project.new_secret("HF_TOKEN", secret_value=HF_TOKEN)
    project.new_secret("WANDB_API_KEY", secret_value="a" * 40)

    def submit(kind: str) -> list[dict[str, Any]]:
        with monkeypatch.context() as patched:
            patched.setattr(sys, "argv", [str(SUBMIT), kind])
            patched.setattr(platform.core, "state_of_runs", "COMPLETED")
            # Which asks again every five seconds.
            patched.setattr("digitalhub.entities.run._base.entity.time", SimpleNamespace(time=lambda: 0.0, sleep=id))
            runpy.run_path(str(SUBMIT), run_name="__main__")
        return platform.held.all("runs")

    return submit


@pytest.fixture
def gated(hub: LoopbackHub, tiny_model: Path) -> LoopbackHub:
    """The dataset and the model that the howto names, small; the dataset only for the token that the project has."""
    hub.tokens[HF_TOKEN] = Account("ada", orgs=("google",), role="read")
    hub.add_repo("dataset", "google/fleurs", ROOT / "demo" / "dataset", private=True)
    hub.add_repo("model", "openai/whisper-small", tiny_model)
    return hub
