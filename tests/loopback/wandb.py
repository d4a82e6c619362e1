"""W&B on the loopback interface, as far as runs with history, files and tables use it; what was sent is kept by run."""

from __future__ import annotations

import gzip
import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from loopback.server import Call, LoopbackServer, Response, json_response

if TYPE_CHECKING:
    from collections.abc import Callable

API_KEY = "a" * 40


@dataclass
class WandbRun:
    """What one run sent, over all processes that continued it.

    `sessions` counts those processes; `exit_code` is that of the last one, None while it runs or if it was killed. A
    table is a file below "media/table/" and an artifact "run-<run id>-<name>".
    """

    entity: str
    project: str
    run_id: str
    name: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    log_lines: list[str] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    artifacts: dict[str, dict[str, bytes]] = field(default_factory=dict)
    sessions: int = 0
    exit_code: int | None = None

    def values(self, key: str) -> list[Any]:
        """The history of one metric, by step."""
        return [row[key] for row in self.history if key in row]

    def settings(self) -> dict[str, Any]:
        """The config without what W&B adds and wraps it in."""
        return {name: entry["value"] for name, entry in self.config.items() if name != "_wandb"}


class LoopbackWandb(LoopbackServer):
    """W&B's server. Point `WANDB_BASE_URL` at `url` and set `WANDB_API_KEY` to `API_KEY`; `entity` owns all runs."""

    def __init__(self, entity: str = "tester") -> None:
        super().__init__()
        self.entity = entity
        self.keys = {API_KEY}
        self.runs: dict[str, WandbRun] = {}

    def reset(self) -> None:
        super().reset()
        self.runs.clear()

    def run(self) -> WandbRun:
        """The only run there is."""
        (run,) = self.runs.values()
        return run

    def respond(self, call: Call) -> Response:
        body = gzip.decompress(call.body) if call.body[:2] == b"\x1f\x8b" else call.body
        with self._lock:
            match (call.method, *call.segments):
                case ("PUT", "storage", run_id, "files", *path):
                    self.runs[run_id].files["/".join(path)] = body
                    return Response(200)
                case ("PUT", "storage", run_id, "artifacts", artifact, *path):
                    self.runs[run_id].artifacts.setdefault(artifact, {})["/".join(path)] = body
                    return Response(200)
                case ("POST", "sdk", "otel", *_):
                    return Response(200, b"", {"Content-Type": "application/x-protobuf"})
            if call.token not in self.keys:
                return json_response({"errors": [{"message": "user is not logged in"}]}, 401)
            match (call.method, *call.segments):
                case ("POST", "graphql"):
                    request = json.loads(body)
                    return self._graphql(request["query"], request.get("variables") or {})
                case ("POST", "files", *_, run_id, "file_stream"):
                    self._stream(self.runs[run_id], json.loads(body))
                    return json_response({})
        return json_response({"error": f"no such endpoint: {call.method} {call.path}"}, 404)

    def _graphql(self, query: str, variables: dict[str, Any]) -> Response:
        answers: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "Viewer": self._viewer,
            "ServerFeaturesQuery": lambda _: {"serverInfo": {"features": []}},
            "OrganizationCoreWeaveOrganizationID": lambda _: {"entity": {"organization": None}},
            "RunResumeStatus": self._resume_status,
            "UpsertBucket": self._upsert,
            "CreateRunFiles": self._create_files,
            "ArtifactType": lambda _: {"project": {"artifact": None}},
            "CreateArtifact": self._create_artifact,
            "CreateArtifactManifest": lambda variables: {"createArtifactManifest": self._manifest(variables)},
            "UpdateArtifactManifest": lambda variables: {"updateArtifactManifest": self._manifest(variables)},
            "CreateArtifactFiles": self._create_artifact_files,
            "CommitArtifact": lambda variables: {"commitArtifact": {"artifact": {"id": variables["artifactID"]}}},
        }
        operation = re.match(r"\s*(?:query|mutation)\s+(\w+)", query)
        if not operation or operation[1] not in answers:
            self.crashes.append(NotImplementedError(f"{query} {variables}"))
            return json_response({"data": None, "errors": [{"message": "unknown operation"}]})
        return json_response({"data": answers[operation[1]](variables)})

    def _viewer(self, _: dict[str, Any]) -> dict[str, Any]:
        teams = {"edges": [{"node": {"name": self.entity}}]}
        viewer = {"id": "1", "entity": self.entity, "username": self.entity, "email": "", "flags": "{}", "teams": teams}
        return {"viewer": viewer}

    def _resume_status(self, variables: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.get(variables["name"])
        bucket = None
        if run is not None and run.sessions:
            bucket = {
                "id": run.run_id,
                "name": run.run_id,
                "displayName": run.name,
                "summaryMetrics": json.dumps(run.summary),
                "config": json.dumps(run.config),
                "historyLineCount": len(run.history),
                "eventsLineCount": 0,
                "logLineCount": len(run.log_lines),
                "historyTail": json.dumps([json.dumps(row) for row in run.history[-1:]]),
                "eventsTail": "[]",
                "tags": [],
                "notes": "",
                "wandbConfig": json.dumps({"t": 1}),
            }
        entity = {"id": "1", "name": self.entity}
        return {"model": {"id": "1", "name": variables["project"], "entity": entity, "bucket": bucket}}

    def _upsert(self, variables: dict[str, Any]) -> dict[str, Any]:
        run_id, project = variables["name"], variables["project"]
        run = self.runs.setdefault(run_id, WandbRun(self.entity, project, run_id))
        # Only the first upsert of a process tells the host.
        inserted = run.sessions == 0
        if variables.get("host"):
            run.sessions += 1
            run.exit_code = None
        run.name = variables.get("displayName") or run.name or run_id
        if variables.get("config"):
            run.config = json.loads(variables["config"])
        if variables.get("summaryMetrics"):
            run.summary = json.loads(variables["summaryMetrics"])
        bucket = {
            "id": run_id,
            "name": run_id,
            "displayName": run.name,
            "description": "",
            "config": json.dumps(run.config),
            "sweepName": None,
            "project": {"id": "1", "name": project, "entity": {"id": "1", "name": self.entity}},
            "historyLineCount": len(run.history),
        }
        return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}

    def _create_files(self, variables: dict[str, Any]) -> dict[str, Any]:
        run_id = variables["run"]
        files = [
            {"name": name, "uploadUrl": f"{self.url}/storage/{run_id}/files/{name}"} for name in variables["files"]
        ]
        return {"createRunFiles": {"runID": run_id, "uploadHeaders": [], "files": files}}

    def _stream(self, run: WandbRun, sent: dict[str, Any]) -> None:
        for name, part in (sent.get("files") or {}).items():
            lines, offset = part["content"], part.get("offset", 0)
            if name == "wandb-history.jsonl":
                run.history[offset : offset + len(lines)] = [json.loads(line) for line in lines]
            elif name == "wandb-summary.json":
                run.summary = json.loads(lines[-1])
            elif name == "output.log":
                run.log_lines[offset : offset + len(lines)] = lines
        if sent.get("complete"):
            run.exit_code = sent.get("exitcode")

    def _create_artifact(self, variables: dict[str, Any]) -> dict[str, Any]:
        wanted = variables["input"]
        # The later requests name the artifact by this id only.
        artifact_id = f"{wanted['runName']}/artifacts/{wanted['artifactCollectionName']}"
        artifact = {"id": artifact_id, "state": "PENDING", "artifactSequence": {"latestArtifact": None}}
        return {"createArtifact": {"artifact": artifact}}

    def _manifest(self, variables: dict[str, Any]) -> dict[str, Any]:
        # Creating it names the artifact, updating it the manifest, which therefore has the artifact's id.
        manifest_id = variables.get("artifactID") or variables["artifactManifestID"]
        upload = f"{self.url}/storage/{manifest_id}/wandb_manifest.json"
        return {
            "artifactManifest": {
                "id": manifest_id,
                "file": {"id": manifest_id, "uploadUrl": upload, "uploadHeaders": []},
            }
        }

    def _create_artifact_files(self, variables: dict[str, Any]) -> dict[str, Any]:
        nodes = [
            {
                "name": file["name"],
                "displayName": file["name"],
                "uploadUrl": f"{self.url}/storage/{file['artifactID']}/{file['name']}",
                "uploadHeaders": [],
                "storagePath": file["name"],
                "uploadMultipartUrls": None,
                "artifact": {"id": file["artifactID"]},
            }
            for file in variables["input"]["artifactFiles"]
        ]
        return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}
