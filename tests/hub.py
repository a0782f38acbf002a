"""A Hub on this machine: enough of the real one's protocol for the real client, with faults on command.

It creates repositories and branches, takes uploads by LFS batch, commits, lists and serves files. The client must be
told its address (HF_ENDPOINT) and not to use Xet (HF_HUB_DISABLE_XET=1).
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_onlyForTestsNeverShown"
"""The token of the user "me", who may write to "me" and to nobody else."""


@dataclass(frozen=True)
class Blob:
    """A file's content, and how it is stored."""

    data: bytes
    lfs: bool

    @property
    def oid(self) -> str:
        if self.lfs:
            return hashlib.sha256(self.data).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(self.data) + self.data).hexdigest()

    def entry(self, path: str) -> dict[str, Any]:
        size = len(self.data)
        lfs = {"lfs": {"oid": self.oid, "size": size, "pointerSize": 134}} if self.lfs else {}
        return {"type": "file", "path": path, "size": size, "oid": self.oid[:40], **lfs}


@dataclass
class Repository:
    """A repository: for each commit all its files, and the commit of each branch."""

    private: bool
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: Mapping[str, Blob]) -> str:
        oid = hashlib.sha1(f"{len(self.commits)}".encode()).hexdigest()
        self.commits[oid] = dict(files)
        self.branches[branch] = oid
        return oid

    def files(self, branch: str = "main") -> dict[str, Blob]:
        return self.commits[self.branches[branch]]


@dataclass
class Fault:
    """What happens in place of an answer to the requests that match, `times` times.

    `status` 0 drops the connection in the middle of the request's body.
    """

    request: str
    status: int
    times: int
    headers: Mapping[str, str]


class Hub:
    """A running Hub, a context manager.

    Attributes:
        url: its address.
        repositories: by their ids.
        blobs: large files that were uploaded, committed or not, by their SHA-256.
        requests: the method and path of every request, in order.
        delay: the seconds that each upload of a large file takes.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.delay = 0.0
        self.lock = Lock()
        self._faults: list[Fault] = []
        hub = self

        class Handler(_Handler):
            def __init__(self, *arguments: Any) -> None:
                self.hub = hub
                super().__init__(*arguments)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> Hub:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def fail(self, request: str, status: int, *, times: int = 1, headers: Mapping[str, str] | None = None) -> None:
        """Answers the next `times` requests whose ``METHOD /path`` matches `request` with `status`; 0 drops them."""
        self._faults.append(Fault(request, status, times, headers or {}))

    def heal(self) -> None:
        """Forgets all faults."""
        self._faults.clear()

    def fault_for(self, request: str) -> Fault | None:
        with self.lock:
            self.requests.append(request)
            for fault in self._faults:
                if fault.times and re.search(fault.request, request):
                    fault.times -= 1
                    return fault
        return None

    def uploads(self) -> int:
        """How many uploads of large files began."""
        return sum(request.startswith("PUT ") for request in self.requests)


class Refusal(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, message: str, code: str = "", **data: str) -> None:
        self.status, self.message, self.code, self.data = status, message, code, data
        super().__init__(message)


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_POST = do_PUT = do_GET

    def _serve(self) -> None:
        path = urlsplit(self.path).path
        fault = self.hub.fault_for(f"{self.command} {path}")
        size = int(self.headers.get("Content-Length") or 0)
        if fault is not None and fault.status == 0:
            self.rfile.read(size // 2)
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        body = self._body(size)
        if self.command == "PUT":
            time.sleep(self.hub.delay)
        try:
            if fault is not None:
                raise Refusal(fault.status, "as the test commands")
            with self.hub.lock:
                self._route(path, body)
        except Refusal as refusal:
            headers = {"X-Error-Message": refusal.message, **(fault.headers if fault else {})}
            if refusal.code:
                headers["X-Error-Code"] = refusal.code
            self._json({"error": refusal.message, **refusal.data}, refusal.status, headers)

    def _body(self, size: int) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(size)
        parts = []
        while length := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(length))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _route(self, path: str, body: bytes) -> None:
        routes: dict[str, Callable[..., None]] = {
            r"POST /api/repos/create": self._create,
            r"POST /api/validate-yaml": self._validate,
            r"GET /api/models/([^/]+/[^/]+)": self._info,
            r"GET /api/models/([^/]+/[^/]+)/revision/([^/]+)": self._info,
            r"GET /api/models/([^/]+/[^/]+)/tree/([^/]+)": self._tree,
            r"POST /api/models/([^/]+/[^/]+)/branch/([^/]+)": self._branch,
            r"POST /api/models/([^/]+/[^/]+)/preupload/([^/]+)": self._preupload,
            r"POST /api/models/([^/]+/[^/]+)/commit/([^/]+)": self._commit,
            r"POST /([^/]+/[^/]+)\.git/info/lfs/objects/batch": self._batch,
            r"PUT /storage/([0-9a-f]{64})": self._store,
            r"(?:GET|HEAD) /storage/([0-9a-f]{64})": self._stored,
            r"(?:GET|HEAD) /([^/]+/[^/]+)/resolve/([^/]+)/(.+)": self._resolve,
        }
        for pattern, answer in routes.items():
            if found := re.fullmatch(pattern, f"{self.command} {path}"):
                return answer(body, *map(unquote, found.groups()))
        raise Refusal(404, f"no such endpoint: {self.command} {path}")

    # What each endpoint does.

    def _create(self, body: bytes) -> None:
        wanted = json.loads(body)
        name = f"{wanted['organization'] or 'me'}/{wanted['name']}"
        self._may_write(name)
        if name in self.hub.repositories:
            raise Refusal(409, "You already created this model repo", url=f"{self.hub.url}/{name}")
        made = self.hub.repositories[name] = Repository(private=wanted.get("visibility") == "private")
        made.commit("main", {".gitattributes": Blob(b"*.safetensors filter=lfs\n", lfs=False)})
        self._json({"url": f"{self.hub.url}/{name}", "name": name, "id": name})

    def _validate(self, body: bytes) -> None:
        text = json.loads(body)["content"]
        if not text.startswith("---\n"):
            self._json({"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]})
        else:
            self._json({"errors": [], "warnings": []})

    def _info(self, _: bytes, name: str, revision: str = "main") -> None:
        repository, oid = self._found(name, revision)
        files = [{"rfilename": path} for path in repository.commits[oid]]
        self._json({"id": name, "modelId": name, "sha": oid, "private": repository.private, "siblings": files})

    def _tree(self, _: bytes, name: str, revision: str) -> None:
        repository, oid = self._found(name, revision)
        self._json([blob.entry(path) for path, blob in repository.commits[oid].items()])

    def _branch(self, _: bytes, name: str, branch: str) -> None:
        self._may_write(name)
        repository, oid = self._found(name, "main")
        if branch in repository.branches:
            raise Refusal(409, "Reference already exists")
        repository.branches[branch] = oid
        self._json({})

    def _preupload(self, body: bytes, name: str, revision: str) -> None:
        self._may_write(name)
        repository, oid = self._found(name, revision)
        answer = []
        for file in json.loads(body)["files"]:
            mode = "lfs" if file["path"].endswith(".safetensors") else "regular"
            known = repository.commits[oid].get(file["path"])
            answer.append(
                {
                    "path": file["path"],
                    "uploadMode": mode,
                    "shouldIgnore": False,
                    "oid": known.oid if known else None,
                }
            )
        self._json({"files": answer})

    def _batch(self, body: bytes, name: str) -> None:
        self._may_write(name)
        objects = []
        for wanted in json.loads(body)["objects"]:
            one = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.blobs:
                one["actions"] = {"upload": {"href": f"{self.hub.url}/storage/{wanted['oid']}"}}
            objects.append(one)
        self._json({"transfer": "basic", "objects": objects})

    def _store(self, body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            raise Refusal(400, "the content does not match its hash")
        self.hub.blobs[oid] = body
        self._json({})

    def _commit(self, body: bytes, name: str, branch: str) -> None:
        self._may_write(name)
        repository, oid = self._found(name, branch)
        files = dict(repository.commits[oid])
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = Blob(base64.b64decode(value["content"]), lfs=False)
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.hub.blobs:
                    raise Refusal(400, f"{value['path']}: was not uploaded")
                files[value["path"]] = Blob(self.hub.blobs[value["oid"]], lfs=True)
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        made = repository.commit(branch, files)
        self._json({"success": True, "commitOid": made, "commitUrl": f"{self.hub.url}/{name}/commit/{made}"})

    def _resolve(self, _: bytes, name: str, revision: str, path: str) -> None:
        repository, oid = self._found(name, revision)
        blob = repository.commits[oid].get(path)
        if blob is None:
            raise Refusal(404, f"no {path}", "EntryNotFound")
        headers = {"X-Repo-Commit": oid, "ETag": f'"{blob.oid}"'}
        if not blob.lfs:
            return self._answer(200, blob.data, headers)
        linked = {"X-Linked-Etag": f'"{blob.oid}"', "X-Linked-Size": str(len(blob.data))}
        # Another host, as of the real one: there the client sends no token.
        storage = self.hub.url.replace("127.0.0.1", "localhost")
        return self._answer(302, b"", {**headers, **linked, "Location": f"{storage}/storage/{blob.oid}"})

    def _stored(self, _: bytes, oid: str) -> None:
        self._answer(200, self.hub.blobs[oid], {"ETag": f'"{oid}"'})

    # Who may do what, and answers.

    def _signed_in(self) -> bool:
        given = self.headers.get("Authorization")
        if given not in (None, f"Bearer {TOKEN}"):
            raise Refusal(401, "Invalid username or password.")
        return given is not None

    def _may_write(self, name: str) -> None:
        if not self._signed_in():
            raise Refusal(401, "Invalid username or password.")
        if not name.startswith("me/"):
            raise Refusal(403, "You don't have the rights to create a model under this namespace")

    def _found(self, name: str, revision: str) -> tuple[Repository, str]:
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and not self._signed_in()):
            raise Refusal(401 if not self._signed_in() else 404, "Repository not found", "RepoNotFound")
        oid = repository.branches.get(revision, revision)
        if oid not in repository.commits:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return repository, oid

    def _json(self, data: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        self._answer(status, json.dumps(data).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _answer(self, status: int, data: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
