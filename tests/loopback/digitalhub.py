"""DigitalHub's core on the loopback interface, as far as projects, functions, runs, artifacts, models, metrics and
secrets use it. Files go to an S3 stand-in, which is not part of it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs

from loopback.server import Call, LoopbackServer, Response, json_response

TOKEN, REFRESH_TOKEN = "dh-access-token", "dh-refresh-token"
_BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class HubProject:
    """What one project holds: entities by their id, in the order they came, and beside them what has endpoints of its
    own."""

    entity: dict[str, Any]
    entities: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    files: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict)

    def all(self, kind: str) -> list[dict[str, Any]]:
        """The entities of a type (`artifacts`, `models`, `runs`, ...), oldest first."""
        return list(self.entities.get(kind, {}).values())

    def only(self, kind: str) -> dict[str, Any]:
        """The only entity of a type."""
        (entity,) = self.all(kind)
        return entity


class LoopbackDigitalHub(LoopbackServer):
    """Core's REST API. Point `DHCORE_ENDPOINT` at `url` and set `DHCORE_ACCESS_TOKEN` to `TOKEN`.

    `tokens` are the access tokens that it takes; `OAUTH2_TOKEN_ENDPOINT` at its `/oauth/token` gives others for
    `REFRESH_TOKEN`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.projects: dict[str, HubProject] = {}
        self.tokens = {TOKEN}
        # Of a run that was submitted; core would start a pod for it.
        self.state_of_runs = "READY"
        # Core's times have milliseconds, and no two versions the same one.
        self._clock = itertools.count()

    def respond(self, call: Call) -> Response:
        if (call.method, call.segments) == ("POST", ("oauth", "token")):
            return self._renew(parse_qs(call.body.decode()))
        if call.token not in self.tokens:
            return json_response({"error": "invalid token"}, 401)
        with self._lock:
            match call.segments:
                case ("api", "auth"):
                    return json_response({})
                case ("api", "v1", "projects", *name):
                    return self._project(call, name)
                case ("api", "v1", "-", name, kind, *rest) if name in self.projects:
                    return self._in_project(call, self.projects[name], kind, rest)
        return _missing(call)

    def _renew(self, form: dict[str, list[str]]) -> Response:
        """A new access token for the refresh token."""
        if form["refresh_token"] != [REFRESH_TOKEN]:
            return json_response({"error": "invalid_grant"}, 400)
        self.tokens = {f"{TOKEN}-renewed"}
        return json_response({"access_token": f"{TOKEN}-renewed", "refresh_token": REFRESH_TOKEN})

    def _project(self, call: Call, name: list[str]) -> Response:
        match call.method, name:
            case "POST", []:
                entity = self._created(call.json())
                if entity["name"] in self.projects:
                    return json_response({"error": "Duplicated entity"}, 400)
                self.projects[entity["name"]] = HubProject(entity)
                return json_response(entity)
            case "GET", [known] if known in self.projects:
                return json_response(self.projects[known].entity)
        return _missing(call)

    def _in_project(self, call: Call, project: HubProject, kind: str, rest: list[str]) -> Response:
        entities = project.entities.setdefault(kind, {})
        if (kind, rest) == ("secrets", ["data"]):
            if call.method == "PUT":
                project.secrets.update(call.json())
            return json_response(project.secrets)
        match call.method, rest:
            case "POST", []:
                entity = self._created(call.json())
                if kind == "runs" and not entity["spec"].get("local_execution"):
                    entity["status"]["state"] = self.state_of_runs
                entities[entity["id"]] = entity
                return json_response(entity)
            case "GET", []:
                return _page(_listed(list(entities.values()), call.query))
        if not rest or rest[0] not in entities:
            return _missing(call)
        match call.method, rest[1:]:
            case "GET", []:
                return json_response(entities[rest[0]])
            case "PUT", []:
                # Of a run that the SDK executes itself the spec is built after it was created; no other changes.
                spec = {} if kind == "runs" else {"spec": entities[rest[0]]["spec"]}
                entities[rest[0]] = {**call.json(), **spec}
                return json_response(entities[rest[0]])
            case "GET", ["metrics"]:
                return json_response(project.metrics.get(rest[0], {}))
            case "PUT", ["metrics", name]:
                project.metrics.setdefault(rest[0], {})[name] = call.json()
                return json_response({})
            case "GET", ["files", "info"]:
                return json_response(project.files.get(rest[0], []))
            case "PUT", ["files", "info"]:
                project.files[rest[0]] = call.json()
                return json_response({})
        raise NotImplementedError(f"{call.method} {call.path}")

    def _created(self, entity: dict[str, Any]) -> dict[str, Any]:
        now = (_BEGAN + timedelta(milliseconds=next(self._clock))).isoformat(timespec="milliseconds")
        entity["metadata"] = {**entity.get("metadata", {}), "created": now, "updated": now}
        entity["status"] = {"state": "CREATED", **entity.get("status", {})}
        return entity


def _listed(entities: list[dict[str, Any]], query: dict[str, list[str]]) -> list[dict[str, Any]]:
    """Newest first; of each name the newest only, unless all versions are asked for."""
    wanted = {name: values[0] for name, values in query.items() if name in ("name", "kind")}
    wanted_of_spec = {name: values[0] for name, values in query.items() if name in ("function", "task")}
    found = [
        entity
        for entity in reversed(entities)
        if all(entity.get(name) == value for name, value in wanted.items())
        and all(entity["spec"].get(name) == value for name, value in wanted_of_spec.items())
    ]
    if query.get("versions") == ["all"]:
        return found
    newest: dict[str, dict[str, Any]] = {}
    for entity in found:
        newest.setdefault(entity.get("name") or entity["id"], entity)
    return list(newest.values())


def _page(entities: list[dict[str, Any]]) -> Response:
    return json_response({"content": entities, "totalPages": 1})


def _missing(call: Call) -> Response:
    return json_response({"error": f"No such EntityName: {call.method} {call.path}"}, 404)
