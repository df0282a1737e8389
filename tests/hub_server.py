"""A Hugging Face Hub on loopback, for tests: standard library only, everything kept in memory.

It speaks the part of the Hub's HTTP interface that `huggingface_hub`, `transformers` and `datasets` use to create,
fill, list and read repositories, so that the real clients can be pointed at it with `HF_ENDPOINT`:

```python
with HubServer() as hub:
    api = HfApi(endpoint=hub.url, token=hub.token)
    api.create_repo("org/name")
```

It never sends Xet headers; clients need `HF_HUB_DISABLE_XET=1` to take the LFS path.
"""

import base64
import hashlib
import json
import re
import secrets
import threading
from dataclasses import dataclass, field
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from urllib.parse import parse_qs, unquote, urlsplit


# Files of these kinds, and larger ones, go through LFS, as a new repository's .gitattributes has it.
LFS_SUFFIXES = (".safetensors", ".bin", ".parquet", ".arrow", ".pt", ".npz", ".mp4", ".wav", ".onnx")
LFS_SIZE = 1_000_000
REGULAR, LFS = "regular", "lfs"


@dataclass
class Blob:
    """Content of one file. `oid` is git's SHA-1 of the blob, `sha256` what LFS calls the object."""

    content: bytes
    mode: str = REGULAR

    def __post_init__(self):
        self.sha256 = hashlib.sha256(self.content).hexdigest()
        self.oid = hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.mode == LFS else self.oid


@dataclass
class Commit:
    sha: str
    title: str
    date: str
    files: dict[str, Blob]
    parent: "Commit | None" = None


@dataclass
class Repository:
    """Commits and branches of one repository. A commit replaces the branch's head only when it is complete."""

    repo_type: str
    repo_id: str
    private: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        self.commit("main", "initial commit", {})

    def commit(self, branch: str, title: str, files: dict[str, Blob]) -> Commit:
        parent = self.find(branch)
        date = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
        listing = [(blob.oid, path) for path, blob in sorted(files.items())]
        seed = (self.repo_type, self.repo_id, parent and parent.sha, title, date, listing)
        commit = Commit(hashlib.sha1(repr(seed).encode()).hexdigest(), title, date, files, parent)
        self.commits[commit.sha] = commit
        self.branches[branch] = commit.sha
        return commit

    def find(self, revision: str) -> Commit | None:
        """The commit that a branch or a commit hash names; None where there is none."""
        return self.commits.get(self.branches.get(revision, revision))

    def history(self, revision: str) -> list[Commit]:
        commits, commit = [], self.find(revision)
        while commit is not None:
            commits.append(commit)
            commit = commit.parent
        return commits


class HubError(Exception):
    """An answer that is not 2xx: status, the code that the client's exceptions are chosen by, and a message."""

    def __init__(self, status: int, message: str, code: str | None = None):
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


class HubServer:
    """Serves until the `with` block ends.

    Attributes:
        url (`str`): what `HF_ENDPOINT` is set to.
        token (`str`): may write to every name space; without one, what is public can be read.
        requests (`list[tuple[str, str, int]]`): method, path and status of every request answered.
    """

    def __init__(self, user: str = "tester"):
        self.user = user
        # Random, so that a search for it in logs and files finds this token and nothing else.
        self.token = "hf_" + secrets.token_hex(17)
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.upload_slots: dict[str, str] = {}
        self.requests: list[tuple[str, str, int]] = []
        self.lock = threading.RLock()
        self._servers = [self._serve(), self._serve()]
        # Large files live at a second address, as the Hub's do: clients must not send it their token.
        self.url, self.storage_url = (f"http://127.0.0.1:{server.server_port}" for server in self._servers)

    def _serve(self) -> ThreadingHTTPServer:
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        server.daemon_threads = True
        return server

    def __enter__(self) -> "HubServer":
        for server in self._servers:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *exception) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def repository(self, repo_id: str, repo_type: str = "model") -> Repository:
        return self.repositories[repo_type, repo_id]

    def files(self, repo_id: str, repo_type: str = "model", revision: str = "main") -> dict[str, bytes]:
        """Path → content of all files of a revision, read past HTTP."""
        commit = self.repository(repo_id, repo_type).find(revision)
        return {path: blob.content for path, blob in commit.files.items()}

    def environment(self, hf_home: str, token: str | None = None) -> dict[str, str]:
        """Variables that make a fresh process talk to this server and to nothing else; no token unless given."""
        variables = {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(hf_home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_UPDATE_DOWNLOAD_COUNTS": "0",
            "DISABLE_SAFETENSORS_CONVERSION": "1",
            "NO_PROXY": "127.0.0.1,localhost",
        }
        return {**variables, "HF_TOKEN": token} if token else variables


REPO = r"(?P<prefix>datasets/)?(?P<repo_id>[^/]+/[^/]+)"
API = r"/api/(?P<plural>models|datasets)/(?P<repo_id>[^/]+/[^/]+)"
ROUTES = [
    (method, re.compile(pattern + "/?"), name)
    for method, pattern, name in [
        ("POST", r"/api/validate-yaml", "validate_card"),
        ("POST", r"/api/repos/create", "create_repo"),
        ("GET", API, "repo_info"),
        ("GET", API + r"/revision/(?P<revision>[^/]+)", "repo_info"),
        ("GET", API + r"/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?", "tree"),
        ("POST", API + r"/paths-info/(?P<revision>[^/]+)", "paths_info"),
        ("POST", API + r"/branch/(?P<branch>[^/]+)", "create_branch"),
        ("POST", API + r"/preupload/(?P<revision>[^/]+)", "preupload"),
        ("POST", API + r"/commit/(?P<revision>[^/]+)", "create_commit"),
        ("POST", "/" + REPO + r"\.git/info/lfs/objects/batch", "lfs_batch"),
        ("PUT", r"/lfs-upload/(?P<slot>[^/]+)", "lfs_put"),
        ("GET", r"/lfs-download/(?P<sha256>[0-9a-f]{64})", "lfs_get"),
        ("GET", "/" + REPO + r"/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
    ]
]


class _Handler(BaseHTTPRequestHandler):
    """One request. Route methods return what to answer as JSON, or send the answer themselves and return None."""

    hub: HubServer
    protocol_version = "HTTP/1.1"
    server_version = "LoopbackHub"

    # Dispatch

    def do_GET(self):
        self._dispatch("GET")

    def do_HEAD(self):
        self._dispatch("GET")

    def do_POST(self):
        self._dispatch("POST")

    def do_PUT(self):
        self._dispatch("PUT")

    def log_message(self, format, *arguments):
        """Requests are kept in `HubServer.requests`; nothing is printed."""

    def _dispatch(self, method: str) -> None:
        target = urlsplit(self.path)
        self.query = parse_qs(target.query)
        self.body = None
        try:
            handler, arguments = self._route(method, target.path)
            self._check_token()
            self.body = self._read_body()
            answer = getattr(self, handler)(**arguments)
            if answer is not None:
                self._send_json(200, answer)
        except HubError as error:
            if self.body is None:
                self._read_body()  # else it would be taken for the connection's next request
            headers = {"X-Error-Message": error.message} | ({"X-Error-Code": error.code} if error.code else {})
            self._send_json(error.status, {"error": error.message}, headers)
        except ConnectionError:
            self.close_connection = True

    def _route(self, method: str, path: str) -> tuple[str, dict]:
        for route_method, pattern, name in ROUTES:
            match = pattern.fullmatch(path)
            if match and method == route_method:
                arguments = {key: unquote(value) for key, value in match.groupdict().items() if value is not None}
                return name, arguments
        raise HubError(404, f"no such route: {method} {path}")

    def _check_token(self) -> None:
        """`self.writer` says whether the request may write and see what is private; an unknown token may do nothing."""
        header = self.headers.get("Authorization", "")
        if header and urlsplit(self.path).path.startswith(("/lfs-upload/", "/lfs-download/")):
            raise HubError(400, "The storage address takes no token")
        token = header.removeprefix("Bearer ").strip()
        self.writer = token == self.hub.token
        if token and not self.writer:
            raise HubError(401, "Invalid credentials in Authorization header")

    # Bodies and answers

    def _read_body(self) -> bytes:
        """The request's body, whether its length was announced or it comes chunked."""
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = bytearray()
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return bytes(body)

    def _json(self) -> dict:
        return json.loads(self.body or b"{}")

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.hub.requests.append((self.command, urlsplit(self.path).path, status))
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _send_json(self, status: int, value, headers: dict[str, str] | None = None) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _send_file(self, content: bytes, headers: dict[str, str]) -> None:
        self._send(200, content, {"Content-Type": "application/octet-stream", **headers})

    # Looking up, with the rights that it takes

    def _repository(self, repo_id: str, plural: str = "", prefix: str = "", write: bool = False) -> Repository:
        repo_type = (plural or prefix.rstrip("/") or "models").removesuffix("s")
        repository = self.hub.repositories.get((repo_type, repo_id))
        # As on the Hub, a private repository and one that does not exist look the same from outside.
        if repository is None or (repository.private and not self.writer):
            raise HubError(404 if self.writer else 401, "Repository not found", "RepoNotFound")
        if write:
            self._require_write(repo_id)
        return repository

    def _require_write(self, repo_id: str) -> None:
        if not self.writer:
            raise HubError(401, f"You do not have the rights to write to {repo_id}")

    def _commit(self, repository: Repository, revision: str) -> Commit:
        commit = repository.find(revision)
        if commit is None:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    def _url(self, repository: Repository) -> str:
        prefix = "" if repository.repo_type == "model" else f"{repository.repo_type}s/"
        return f"{self.hub.url}/{prefix}{repository.repo_id}"

    # Repositories

    def validate_card(self):
        return {"errors": [], "warnings": []}

    def create_repo(self):
        request = self._json()
        repo_id = f"{request.get('organization') or self.hub.user}/{request['name']}"
        repo_type = request.get("type") or "model"
        self._require_write(repo_id)
        with self.hub.lock:
            existing = self.hub.repositories.get((repo_type, repo_id))
            private = bool(request.get("private")) or request.get("visibility") == "private"
            repository = existing or Repository(repo_type, repo_id, private)
            self.hub.repositories[repo_type, repo_id] = repository
        answer = {"url": self._url(repository), "name": repo_id, "id": repo_id}
        if existing is None:
            return answer
        self._send_json(409, {"error": "You already created this repo", **answer})

    def repo_info(self, revision: str = "main", **repo):
        repository = self._repository(**repo)
        commit = self._commit(repository, revision)
        return {
            "_id": hashlib.sha1(repository.repo_id.encode()).hexdigest()[:24],
            "id": repository.repo_id,
            "modelId": repository.repo_id,
            "author": repository.repo_id.split("/")[0],
            "sha": commit.sha,
            "lastModified": commit.date,
            "createdAt": repository.history(revision)[-1].date,
            "private": repository.private,
            "gated": False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "siblings": [
                {"rfilename": path, "size": len(blob.content), "blobId": blob.oid}
                for path, blob in sorted(commit.files.items())
            ],
        }

    # Listings

    def _entry(self, path: str, commit: Commit) -> dict:
        entry = {"path": path, "lastCommit": {"id": commit.sha, "title": commit.title, "date": commit.date}}
        blob = commit.files.get(path)
        if blob is None:
            return {"type": "directory", "oid": hashlib.sha1(path.encode()).hexdigest(), "size": 0, **entry}
        if blob.mode == LFS:
            entry["lfs"] = {"oid": blob.sha256, "size": len(blob.content), "pointerSize": 134}
        return {"type": "file", "oid": blob.oid, "size": len(blob.content), **entry}

    def tree(self, revision: str, path: str = "", **repo):
        commit = self._commit(self._repository(**repo), revision)
        inside = f"{path}/" if path else ""
        files = sorted(name for name in commit.files if name.startswith(inside))
        if path and not files:
            raise HubError(404, f"{path} does not exist on {revision}", "EntryNotFound")
        entries = set(files)
        for name in files:
            parts = name.removeprefix(inside).split("/")[:-1]
            entries.update(inside + "/".join(parts[: depth + 1]) for depth in range(len(parts)))
        if self.query.get("recursive", ["false"])[0].lower() not in ("true", "1"):
            entries = {name for name in entries if "/" not in name.removeprefix(inside)}
        return [self._entry(name, commit) for name in sorted(entries)]

    def paths_info(self, revision: str, **repo):
        commit = self._commit(self._repository(**repo), revision)
        is_json = self.headers.get("Content-Type", "").startswith("application/json")
        paths = self._json()["paths"] if is_json else parse_qs(self.body.decode()).get("paths", [])
        known = {*commit.files, *(str(parent) for name in commit.files for parent in PurePosixPath(name).parents)}
        return [self._entry(path, commit) for path in paths if path in known]

    def create_branch(self, branch: str, **repo):
        repository = self._repository(write=True, **repo)
        if branch in repository.branches:
            raise HubError(409, f"Reference already exists: refs/heads/{branch}")
        repository.branches[branch] = self._commit(repository, self._json().get("startingPoint", "main")).sha
        return {}

    # Uploads

    def preupload(self, revision: str, **repo):
        repository = self._repository(write=True, **repo)
        commit = self._commit(repository, revision)
        answers = []
        for file in self._json()["files"]:
            large = file["size"] > LFS_SIZE or file["path"].endswith(LFS_SUFFIXES)
            answer = {"path": file["path"], "uploadMode": LFS if large else REGULAR, "shouldIgnore": False}
            if file["path"] in commit.files:
                answer["oid"] = commit.files[file["path"]].etag
            answers.append(answer)
        return {"files": answers}

    def lfs_batch(self, **repo):
        self._repository(write=True, **repo)
        objects = []
        for item in self._json()["objects"]:
            answer = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in self.hub.objects:
                # The address itself is the permission, as with the Hub's presigned ones: no token is sent to it.
                slot = secrets.token_hex(16)
                self.hub.upload_slots[slot] = item["oid"]
                answer["actions"] = {"upload": {"href": f"{self.hub.storage_url}/lfs-upload/{slot}"}}
            objects.append(answer)
        return {"transfer": "basic", "objects": objects}

    def lfs_put(self, slot: str):
        self.hub.objects[self.hub.upload_slots.pop(slot)] = self.body
        return {}

    def create_commit(self, revision: str, **repo):
        repository = self._repository(write=True, **repo)
        lines = [json.loads(line) for line in self.body.splitlines() if line.strip()]
        with self.hub.lock:
            files = dict(self._commit(repository, revision).files)
            for line in lines[1:]:
                self._apply(files, line["key"], line["value"])
            commit = repository.commit(revision, lines[0]["value"]["summary"], files)
        url = f"{self._url(repository)}/commit/{commit.sha}"
        return {"success": True, "commitOid": commit.sha, "commitUrl": url, "hookOutput": ""}

    def _apply(self, files: dict[str, Blob], key: str, value: dict) -> None:
        path = value["path"]
        if key == "file":
            files[path] = Blob(base64.b64decode(value["content"]))
        elif key == "lfsFile":
            files[path] = Blob(self.hub.objects[value["oid"]], LFS)
        elif key == "deletedFile":
            if files.pop(path, None) is None:
                raise HubError(404, f"{path} does not exist", "EntryNotFound")
        else:
            raise HubError(400, f"unknown operation {key} in the commit")

    # Downloads

    def resolve(self, revision: str, path: str, **repo):
        commit = self._commit(self._repository(**repo), revision)
        headers = {"X-Repo-Commit": commit.sha}
        blob = commit.files.get(path)
        if blob is None:
            headers |= {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
            return self._send_json(404, {"error": "Entry not found"}, headers)
        headers["ETag"] = f'"{blob.etag}"'
        if blob.mode == REGULAR:
            return self._send_file(blob.content, headers)
        # Large files come from another address, as they do on the Hub; what they are is said here already.
        headers |= {
            "X-Linked-Size": str(len(blob.content)),
            "X-Linked-ETag": f'"{blob.sha256}"',
            "Location": f"{self.hub.storage_url}/lfs-download/{blob.sha256}",
        }
        self._send(302, b"", headers)

    def lfs_get(self, sha256: str):
        self._send_file(self.hub.objects[sha256], {"ETag": f'"{sha256}"'})
