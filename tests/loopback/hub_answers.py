"""What the Hub answers: each function makes one kind of body or header out of a repository, a commit or an account."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import yaml

from loopback.repos import goes_to_lfs
from loopback.server import Call, Response, json_response

if TYPE_CHECKING:
    from collections.abc import Mapping

    from loopback.repos import Commit, Repo

_DATE = "2026-01-01T00:00:00.000Z"


@dataclass(frozen=True)
class Account:
    """Who a token belongs to, and what it allows.

    `role` is "read", "write" or "fineGrained"; the last may write in the namespaces of `scopes` only. `accepted` holds
    the gated repositories whose terms were accepted.
    """

    name: str
    orgs: tuple[str, ...] = ()
    role: str = "write"
    scopes: frozenset[str] = frozenset()
    accepted: frozenset[str] = frozenset()

    def owns(self, repo_id: str) -> bool:
        return repo_id.partition("/")[0] in (self.name, *self.orgs)

    def may_write(self, repo_id: str) -> bool:
        if self.role == "fineGrained":
            return repo_id.partition("/")[0] in self.scopes
        return self.role == "write" and self.owns(repo_id)


class Refusal(Exception):
    """An answer with an error status, the `X-Error-Code` that clients tell errors apart by, and a message."""

    def __init__(self, status: int, code: str | None, message: str) -> None:
        super().__init__(status, code, message)
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self.response = json_response({"error": message}, status, headers)


def flag(options: Mapping[str, list[str]], name: str) -> bool:
    """A boolean of a query or a form, which clients write in several ways."""
    return options.get(name, [""])[0].lower() in ("true", "1")


def commit_of(repo: Repo, revision: str) -> Commit:
    commit = repo.find(revision)
    if commit is None:
        raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
    return commit


def check_gate(repo: Repo, account: Account | None) -> None:
    if not repo.gated or (account and (account.owns(repo.repo_id) or repo.repo_id in account.accepted)):
        return
    message = (
        f"Access to {repo.repo_type} {repo.repo_id} is restricted. You must have access to it and be authenticated."
    )
    raise Refusal(403 if account else 401, "GatedRepo", message)


def whoami(account: Account | None) -> Response:
    if account is None:
        raise Refusal(401, None, "Invalid username or password.")
    token: dict[str, Any] = {"displayName": "test", "role": account.role, "createdAt": _DATE}
    if account.role == "fineGrained":
        scoped = [
            {"entity": {"_id": name, "type": "user", "name": name}, "permissions": ["repo.content.read", "repo.write"]}
            for name in sorted(account.scopes)
        ]
        token["fineGrained"] = {"canReadGatedRepos": True, "global": [], "scoped": scoped}
    return json_response(
        {
            "type": "user",
            "id": hashlib.sha256(account.name.encode()).hexdigest()[:24],
            "name": account.name,
            "fullname": account.name.title(),
            "isPro": False,
            "orgs": [{"type": "org", "name": name, "fullname": name, "roleInOrg": "write"} for name in account.orgs],
            "auth": {"type": "access_token", "accessToken": token},
        }
    )


def validate_yaml(readme: str) -> Response:
    """The checks of the Hub's model cards that a wrong card is most likely to fail."""
    front_matter = re.match(r"---\r?\n(.*?)\r?\n---", readme, re.DOTALL)
    if not front_matter:
        warning = {"message": "empty or missing yaml metadata in repo card"}
        return json_response({"errors": [], "warnings": [warning]})
    try:
        metadata = yaml.safe_load(front_matter[1])
    except yaml.YAMLError as error:
        return json_response({"errors": [{"message": f"YAML: {error}"}], "warnings": []}, 400)
    if not isinstance(metadata, dict):
        return json_response({"errors": [{"message": '"metadata" must be of type object'}], "warnings": []}, 400)
    languages = metadata.get("language") or []
    errors = [
        f'"language" with value "{language}" is not an ISO 639-1, 639-2 or 639-3 code'
        for language in ([languages] if isinstance(languages, str) else languages)
        if not re.fullmatch(r"[a-z]{2,3}(-[A-Za-z]+)?|multilingual|code", str(language))
    ]
    if not isinstance(metadata.get("license", ""), (str, list)):
        errors.append('"license" must be a string')
    results = [result for model in metadata.get("model-index") or [] for result in model.get("results", [{}])]
    parts = ("task", "dataset", "metrics")
    errors += [
        f'"model-index.results.{part}" is required' for result in results for part in parts if part not in result
    ]
    body = {"errors": [{"message": message} for message in errors], "warnings": []}
    return json_response(body, 400 if errors else 200)


def info(repo: Repo, commit: Commit, *, blobs: bool) -> dict[str, Any]:
    siblings = []
    for path, blob in sorted(commit.files.items()):
        sibling: dict[str, Any] = {"rfilename": path}
        if blobs:
            sibling |= {"size": len(blob.content), "blobId": blob.oid}
            if blob.lfs:
                size, pointer_size = len(blob.content), len(blob.pointer)
                sibling["lfs"] = {"sha256": blob.sha256, "size": size, "pointerSize": pointer_size}
        siblings.append(sibling)
    readme = commit.files.get("README.md")
    front_matter = re.match(r"---\n(.*?)\n---", readme.content.decode() if readme else "", re.DOTALL)
    return {
        "_id": hashlib.sha256(repo.repo_id.encode()).hexdigest()[:24],
        "id": repo.repo_id,
        "author": repo.repo_id.partition("/")[0],
        "sha": commit.sha,
        "createdAt": _DATE,
        "lastModified": _DATE,
        "private": repo.private,
        "gated": "auto" if repo.gated else False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": [],
        "cardData": (yaml.safe_load(front_matter[1]) if front_matter else None) or {},
        "siblings": siblings,
    }


def last_commit(commit: Commit) -> dict[str, Any]:
    return {"id": commit.sha, "title": commit.title, "date": _DATE}


def entry(commit: Commit, path: str, options: Mapping[str, list[str]]) -> dict[str, Any]:
    """One line of a listing; `options` are those of the request."""
    entry: dict[str, Any] = {"path": path}
    blob = commit.files.get(path)
    if blob is None:
        return entry | {"type": "directory", "oid": hashlib.sha256(path.encode()).hexdigest()[:40], "size": 0}
    entry |= {"type": "file", "oid": blob.oid, "size": len(blob.content)}
    if blob.lfs:
        entry["lfs"] = {"oid": blob.sha256, "size": len(blob.content), "pointerSize": len(blob.pointer)}
    if flag(options, "expand"):
        entry["lastCommit"] = last_commit(commit)
    return entry


def paths_info(call: Call, commit: Commit) -> Response:
    form = parse_qs(call.body.decode())
    known = {*commit.files, *commit.folders()}
    return json_response(
        [entry(commit, path.rstrip("/"), form) for path in form.get("paths", []) if path.rstrip("/") in known]
    )


def refs(repo: Repo) -> dict[str, Any]:
    refs: dict[str, Any] = {"branches": [], "converts": [], "tags": [], "pullRequests": []}
    for name, sha in sorted(repo.refs.items()):
        if name.startswith("refs/convert/"):
            refs["converts"].append({"name": name.removeprefix("refs/convert/"), "ref": name, "targetCommit": sha})
        else:
            refs["branches"].append({"name": name, "ref": f"refs/heads/{name}", "targetCommit": sha})
    return refs


def preupload(request: dict[str, Any], commit: Commit) -> Response:
    answers = [
        {
            "path": file["path"],
            "uploadMode": "lfs" if goes_to_lfs(file["path"], file["size"]) else "regular",
            "shouldIgnore": False,
            "oid": commit.files[file["path"]].etag if file["path"] in commit.files else None,
        }
        for file in request["files"]
    ]
    return json_response({"files": answers, "commitOid": commit.sha})


def ranged(content: bytes, call: Call, headers: Mapping[str, str]) -> Response:
    """The content, or the one byte range that was asked for (RFC 9110, section 14)."""
    headers = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream", **headers}
    wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", call.headers.get("Range", ""))
    if not wanted or wanted[1] == wanted[2] == "":
        return Response(200, content, headers)
    if wanted[1]:
        start, end = int(wanted[1]), min(int(wanted[2] or len(content) - 1), len(content) - 1)
    else:
        start, end = max(0, len(content) - int(wanted[2])), len(content) - 1
    if start > end:
        return Response(416, b"", headers | {"Content-Range": f"bytes */{len(content)}"})
    return Response(206, content[start : end + 1], headers | {"Content-Range": f"bytes {start}-{end}/{len(content)}"})
