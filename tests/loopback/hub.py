"""The Hugging Face Hub on the loopback interface, as far as huggingface_hub, datasets and transformers use it.

Answers have the codes, headers and bodies of the real service: anonymous requests for what is missing or private get
401, large files are LFS objects behind a redirect, revisions may be branches, ids or `refs/convert/parquet`. The Xet
protocol is not spoken.
"""

from __future__ import annotations

import base64
import hashlib
import json
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from loopback.hub_answers import (
    Account,
    Refusal,
    check_gate,
    commit_of,
    entry,
    flag,
    info,
    last_commit,
    paths_info,
    preupload,
    ranged,
    refs,
    validate_yaml,
    whoami,
)
from loopback.repos import GITATTRIBUTES, Blob, Commit, Repo, read_files
from loopback.server import Call, LoopbackServer, Response, json_response

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_TYPES = {"models": "model", "datasets": "dataset", "spaces": "space"}
_LFS_JSON = {"Content-Type": "application/vnd.git-lfs+json"}


class LoopbackHub(LoopbackServer):
    """The Hub. `tokens` says who may sign in: "hf_test" belongs to "tester" and may write.

    with LoopbackHub() as hub:
        hub.add_repo("dataset", "google/fleurs", folder)
        HfApi(endpoint=hub.url).dataset_info("google/fleurs")
    """

    def __init__(self) -> None:
        # Large files come from another origin, as from the Hub's CDN: clients must not take their token there.
        super().__init__(ports=2)
        self.tokens: dict[str, Account] = {}
        # Entries on one page of a file listing; the Hub gives 1000.
        self.page_size = 1000
        # The Hub does; a mirror or a proxy may send the whole file whatever part of it is asked for.
        self.knows_ranges = True
        self._repos: dict[tuple[str, str], Repo] = {}
        self._lfs: dict[str, bytes] = {}
        self.reset()

    def reset(self) -> None:
        """Back to an empty Hub with the one account."""
        super().reset()
        with self._lock:
            self.tokens = {"hf_test": Account("tester", orgs=("test-org",))}
            self.page_size = 1000
            self.knows_ranges = True
            self._repos.clear()
            self._lfs.clear()

    def add_repo(
        self,
        repo_type: str,
        repo_id: str,
        files: Path | Mapping[str, bytes | str | Path],
        *,
        revision: str = "main",
        private: bool = False,
        gated: bool = False,
        title: str = "Add files",
    ) -> str:
        """Commit a folder, or a mapping from path to content, as all there is on `revision`; returns the commit id.

        A repository that is there gains a branch or a commit, and keeps its visibility.
        """
        with self._lock:
            repo = self._repos.setdefault((repo_type, repo_id), Repo(repo_type, repo_id, private, gated))
            if revision != "main" and "main" not in repo.refs:
                repo.commit("main", "initial commit", {".gitattributes": Blob(GITATTRIBUTES, lfs=False)})
            return repo.commit(revision, title, read_files(files)).sha

    def repo(self, repo_type: str, repo_id: str) -> Repo:
        return self._repos[repo_type, repo_id]

    def files(self, repo_type: str, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """What a repository holds, `.gitattributes` aside."""
        commit = self.repo(repo_type, repo_id).find(revision)
        assert commit, f"no revision {revision}"
        return {path: blob.content for path, blob in commit.files.items() if path != ".gitattributes"}

    def respond(self, call: Call) -> Response:
        try:
            with self._lock:
                return self._route(call)
        except Refusal as refusal:
            return refusal.response

    def _route(self, call: Call) -> Response:
        match (call.method, *call.segments):
            case ("PUT", "_lfs", oid):
                return self._put_lfs(oid, call.body)
            case ("GET" | "HEAD", "_cdn", _, _, oid, *_):
                return self._content(self._lfs[oid], call, {"ETag": f'"{oid}"'})
        account = self._account(call)
        match (call.method, *call.segments):
            case ("GET", "api", "whoami-v2"):
                return whoami(account)
            case ("POST", "api", "validate-yaml"):
                return validate_yaml(call.json()["content"])
            case ("POST", "api", "repos", "create"):
                return self._create(call.json(), account)
            case ("DELETE", "api", "repos", "delete"):
                return self._delete(call.json(), account)
            case (_, "api", types, namespace, name, *rest) if types in _TYPES:
                repo = self._readable(_TYPES[types], f"{namespace}/{name}", account)
                return self._api(call, repo, account, rest)
            case ("POST", *prefix, namespace, name, "info", "lfs", "objects", "batch") if name.endswith(".git"):
                repo = self._readable(_type_of(prefix), f"{namespace}/{name[:-4]}", account)
                self._check_writable(repo.repo_id, account)
                return self._lfs_batch(call.json())
            case ("POST", "_lfs", _, "verify"):
                return json_response({})
            case ("GET" | "HEAD", *segments) if {"resolve", "raw"} & set(segments[2:4]):
                return self._resolve(call, segments, account)
        raise Refusal(404, None, f"Sorry, we can't find the page you are looking for: {call.method} {call.path}")

    def _api(self, call: Call, repo: Repo, account: Account | None, rest: list[str]) -> Response:
        match (call.method, *rest):
            case ("GET",):
                return json_response(info(repo, commit_of(repo, "main"), blobs="blobs" in call.query))
            case ("GET", "revision", revision):
                return json_response(info(repo, commit_of(repo, revision), blobs="blobs" in call.query))
            case ("GET", "tree", revision, *path):
                return self._tree(call, commit_of(repo, revision), "/".join(path))
            case ("POST", "paths-info", revision):
                return paths_info(call, commit_of(repo, revision))
            case ("GET", "refs"):
                return json_response(refs(repo))
            case ("GET", "commits", revision):
                return json_response([{**last_commit(commit_of(repo, revision)), "message": "", "authors": []}])
            case ("GET", "auth-check"):
                check_gate(repo, account)
                return json_response({})
        self._check_writable(repo.repo_id, account)
        match (call.method, *rest):
            case ("GET", "auth-check", "write"):
                return json_response({})
            case ("POST", "preupload", revision):
                return preupload(call.json(), commit_of(repo, revision))
            case ("POST", "commit", revision):
                return self._commit(call, repo, revision)
            case ("POST", "branch", branch):
                if branch in repo.refs:
                    raise Refusal(409, None, f"Reference already exists: {branch}")
                repo.refs[branch] = commit_of(repo, call.json().get("startingPoint", "main")).sha
                return json_response({})
            case ("POST", "tag", revision):
                repo.refs[call.json()["tag"]] = commit_of(repo, revision).sha
                return json_response({})
            case ("PUT", "settings"):
                settings = call.json()
                repo.private = settings.get("private", settings.get("visibility", "public") == "private")
                return json_response({})
        raise Refusal(404, None, f"no such endpoint: {call.method} {call.path}")

    def _account(self, call: Call) -> Account | None:
        if call.token is None:
            return None
        if call.token not in self.tokens:
            raise Refusal(401, None, "Invalid credentials in Authorization header")
        return self.tokens[call.token]

    def _readable(self, repo_type: str, repo_id: str, account: Account | None) -> Repo:
        repo = self._repos.get((repo_type, repo_id))
        if repo and (not repo.private or (account and account.owns(repo_id))):
            return repo
        if account is None:
            raise Refusal(401, "RepoNotFound", "Invalid username or password.")
        raise Refusal(404, "RepoNotFound", "Repository not found")

    def _check_writable(self, repo_id: str, account: Account | None) -> None:
        if account is None:
            raise Refusal(401, None, "Invalid username or password.")
        if not account.may_write(repo_id):
            namespace = repo_id.partition("/")[0]
            raise Refusal(
                403, None, f'You don\'t have the required permissions to write in the namespace "{namespace}"'
            )

    def _create(self, request: dict[str, Any], account: Account | None) -> Response:
        repo_type = request.get("type", "model")
        namespace = request.get("organization") or (account.name if account else "")
        repo_id = f"{namespace}/{request['name']}"
        self._check_writable(repo_id, account)
        url = f"{self.url}/{'' if repo_type == 'model' else repo_type + 's/'}{repo_id}"
        if (repo_type, repo_id) in self._repos:
            message = f"You already created this {repo_type} repo: {repo_id}"
            return json_response({"error": message, "url": url}, 409, {"X-Error-Message": message})
        private = request.get("private", request.get("visibility") == "private")
        repo = self._repos[repo_type, repo_id] = Repo(repo_type, repo_id, private)
        repo.commit("main", "initial commit", {".gitattributes": Blob(GITATTRIBUTES, lfs=False)})
        return json_response({"url": url, "name": repo_id, "id": hashlib.sha256(url.encode()).hexdigest()[:24]})

    def _delete(self, request: dict[str, Any], account: Account | None) -> Response:
        repo_type = request.get("type", "model")
        namespace = request.get("organization") or (account.name if account else "")
        repo = self._readable(repo_type, f"{namespace}/{request['name']}", account)
        self._check_writable(repo.repo_id, account)
        del self._repos[repo.repo_type, repo.repo_id]
        return json_response({})

    def _tree(self, call: Call, commit: Commit, folder: str) -> Response:
        folders = commit.folders()
        if folder and folder not in folders:
            raise Refusal(404, "EntryNotFound", f"{folder} does not exist on {commit.sha}")
        prefix = f"{folder}/" if folder else ""
        recursive = flag(call.query, "recursive")
        entries = [
            entry(commit, path, call.query)
            for path in sorted({*folders, *commit.files})
            if path.startswith(prefix) and (recursive or "/" not in path[len(prefix) :])
        ]
        start = int(call.query.get("cursor", ["0"])[0])
        end = start + int(call.query.get("limit", [str(self.page_size)])[0])
        headers = {}
        if end < len(entries):
            query = urlencode({name: values[0] for name, values in call.query.items()} | {"cursor": str(end)})
            path = "/".join(quote(segment, safe="") for segment in call.segments)
            headers["Link"] = f'<{self.url}/{path}?{query}>; rel="next"'
        return json_response(entries[start:end], headers=headers)

    def _resolve(self, call: Call, segments: list[str], account: Account | None) -> Response:
        at = next(index for index, segment in enumerate(segments) if segment in ("resolve", "raw"))
        namespace, name = segments[at - 2 : at]
        repo = self._readable(_type_of(segments[: at - 2]), f"{namespace}/{name}", account)
        commit = commit_of(repo, segments[at + 1])
        # Slashes inside a file's path may be quoted or not.
        path = "/".join(segments[at + 2 :])
        check_gate(repo, account)
        if path not in commit.files:
            raise Refusal(404, "EntryNotFound", "Entry not found")
        blob = commit.files[path]
        name = segments[-1].rpartition("/")[2]
        headers = {
            "X-Repo-Commit": commit.sha,
            "Content-Disposition": f"inline; filename*=UTF-8''{quote(name)}; filename=\"{name}\";",
        }
        if segments[at] == "raw":
            return self._content(blob.pointer if blob.lfs else blob.content, call, headers)
        if not blob.lfs:
            return self._content(blob.content, call, headers | {"ETag": f'"{blob.etag}"'})
        self._lfs[blob.sha256] = blob.content
        location = f"{self.urls[1]}/_cdn/{repo.repo_type}s/{quote(repo.repo_id, safe='')}/{blob.sha256}/{quote(path)}"
        linked = {"X-Linked-ETag": f'"{blob.etag}"', "X-Linked-Size": str(len(blob.content)), "Location": location}
        return Response(302, b"", headers | linked)

    def _content(self, content: bytes, call: Call, headers: Mapping[str, str]) -> Response:
        return ranged(content, call, headers) if self.knows_ranges else Response(200, content, headers)

    def _lfs_batch(self, request: dict[str, Any]) -> Response:
        objects = []
        for wanted in request["objects"]:
            oid = wanted["oid"]
            answer = {"oid": oid, "size": wanted["size"]}
            if oid not in self._lfs:
                verify = {"href": f"{self.url}/_lfs/{oid}/verify"}
                answer["actions"] = {"upload": {"href": f"{self.url}/_lfs/{oid}"}, "verify": verify}
            objects.append(answer)
        return json_response({"transfer": "basic", "objects": objects}, headers=_LFS_JSON)

    def _put_lfs(self, oid: str, content: bytes) -> Response:
        if hashlib.sha256(content).hexdigest() != oid:
            raise Refusal(400, None, "the content has another sha256")
        self._lfs[oid] = content
        return Response(200)

    def _commit(self, call: Call, repo: Repo, revision: str) -> Response:
        head = commit_of(repo, revision)
        files = dict(head.files)
        title = ""
        for line in call.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            path = value.get("path", "")
            if item["key"] == "header":
                title = value["summary"]
                if value.get("parentCommit") not in (None, head.sha):
                    raise Refusal(412, None, "A commit has happened since. Please refresh and try again.")
            elif item["key"] == "file":
                files[path] = Blob(base64.b64decode(value["content"]), lfs=False)
            elif item["key"] == "lfsFile":
                if value["oid"] not in self._lfs:
                    raise Refusal(400, None, f"LFS pointer pointed to a file that does not exist: {path}")
                files[path] = Blob(self._lfs[value["oid"]], lfs=True)
            elif item["key"] == "deletedFile":
                if files.pop(path, None) is None:
                    raise Refusal(404, "EntryNotFound", f"A file with this name doesn't exist: {path}")
            elif item["key"] == "deletedFolder":
                files = {name: blob for name, blob in files.items() if not name.startswith(path.rstrip("/") + "/")}
        commit = repo.commit(revision, title, files)
        prefix = "" if repo.repo_type == "model" else f"{repo.repo_type}s/"
        url = f"{self.url}/{prefix}{repo.repo_id}/commit/{commit.sha}"
        return json_response({"success": True, "commitOid": commit.sha, "commitUrl": url, "hookOutput": ""})


def _type_of(prefix: list[str]) -> str:
    return _TYPES[prefix[0]] if prefix and prefix[0] in _TYPES else "model"
