"""DigitalHub as far as this machine goes: the real SDK with a core and an S3 on the loopback interface, and pods that
do with the run of a python function what the platform's own do."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from loopback.digitalhub import TOKEN, HubProject, LoopbackDigitalHub

if TYPE_CHECKING:
    from digitalhub.entities.project._base.entity import Project

BUCKET = "datalake"
PROJECT = "asr"


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

    def execute(self, run_id: str, **changed: object) -> dict[str, Any]:
        """Do in this process what the platform's pod does for the run of a python function, and return the run.

        The pod has the run's environment variables and the secrets that it names; it takes the source from the
        function, the parameters and inputs from the run, and keeps what the function leaves in the run's status.
        changed: parameters that take the place of those that were submitted.

        Raises whatever the function raises, with the run in the state that Kubernetes' failed job gives it.
        """
        from digitalhub import get_project, get_run
        from digitalhub.context.api import delete_context
        from digitalhub_runtime_python.utils.configuration import import_function_and_init_from_source
        from digitalhub_runtime_python.utils.inputs import compose_inputs
        from digitalhub_runtime_python.utils.outputs import build_new_status, parse_outputs

        submitted = self.held.entities["runs"][run_id]
        spec, status = submitted["spec"], submitted["status"]
        spec["parameters"] = {**spec.get("parameters", {}), **changed}
        function = self.function_of(submitted)
        with self.monkeypatch.context() as pod:
            given = {entry["name"]: entry["value"] for entry in spec.get("envs") or []}
            secrets = {name: self.held.secrets[name] for name in spec.get("secrets") or []}
            for name, value in {**given, **secrets, "PROJECT_NAME": PROJECT, "RUN_ID": run_id}.items():
                pod.setenv(name, value)
            root = self.folder / run_id
            root.mkdir()
            (root / "main.py").write_bytes(base64.b64decode(function["spec"]["source"]["base64"]))
            status["state"] = "RUNNING"
            delete_context(PROJECT)
            project = get_project(PROJECT)
            run = get_run(run_id, project=PROJECT)
            run.start_execution()
            try:
                run.spec.inputs = run.inputs(as_dict=True)
                handler, _ = import_function_and_init_from_source(function["spec"]["source"], root)
                of_run = run.spec.to_dict()
                arguments = compose_inputs(
                    of_run.get("inputs", {}), of_run.get("parameters", {}), False, handler, project
                )
                made = parse_outputs(handler(**arguments), PROJECT, run.key)
                run.refresh()
                run.set_status({**build_new_status(PROJECT, made), **run.status.to_dict()})
                run.save(update=True)
            except Exception:
                self.held.entities["runs"][run_id]["status"]["state"] = "ERROR"
                raise
            finally:
                run.end_execution()
        ended = self.held.entities["runs"][run_id]
        ended["status"]["state"] = "COMPLETED"
        return ended


@pytest.fixture(scope="session")
def _s3_server() -> Iterator[str]:
    """The address of an S3 stand-in."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def platform(_s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Platform]:
    """An empty platform, whose address and credentials are in the environment as they are in a pod's."""
    import boto3
    from digitalhub.context.api import delete_context
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
        # The SDK keeps its client, and the context of a project, for the life of the process.
        reset_client_config()
        yield Platform(core, s3, folder, monkeypatch)
        delete_context(PROJECT)
        reset_client_config()
        for key in [entry["Key"] for entry in s3.list_objects_v2(Bucket=BUCKET).get("Contents", [])]:
            s3.delete_object(Bucket=BUCKET, Key=key)
        assert not core.crashes, "the loopback DigitalHub did not understand a request"
