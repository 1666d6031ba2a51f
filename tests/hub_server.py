"""A small Hugging Face hub on the loopback: real HTTP, real files, and faults on demand.

It speaks the part of the protocol that huggingface_hub uses to download: information about a model and its
files, ``resolve`` with the headers that name commit, digest and size, redirects of large files to a second
server (the "CDN"), and ranges. Small files are known by their git SHA-1, large ones by SHA-256, as on the
real hub.
"""

import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = (".safetensors", ".bin", ".ckpt", ".msgpack", ".onnx")
"""Endings of files that are stored as large ones, and redirected."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """How a request is answered instead of properly.

    Attributes:
        status: with an empty body; None sends the proper answer, changed by what follows.
        headers: sent in addition.
        body: of the answer with a ``status``.
        change: applied to the bytes that are sent; the headers are those of the right ones.
        cut: the connection is closed after this many bytes of the body.
        wait: seconds before anything is sent.
        claim: sizes in the headers; None names the right ones.
        then: called before the answer is sent.
    """

    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    change: Callable[[bytes], bytes] = bytes
    cut: int | None = None
    wait: float = 0.0
    claim: int | None = None
    then: Callable[[], object] = lambda: None


@dataclass(frozen=True)
class Request:
    """What a client asked: of ``server`` "hub" or "cdn"."""

    server: str
    method: str
    path: str
    headers: Mapping[str, str]


def commit_of(files: Mapping[str, bytes]) -> str:
    """A commit's name: forty hexadecimal digits that depend on the files."""
    return hashlib.sha1(
        repr(sorted((name, digest(name, data)) for name, data in files.items())).encode()
    ).hexdigest()


def digest(name: str, data: bytes) -> str:
    """The ETag of a file: SHA-256 of a large one, else git's SHA-1 of a blob."""
    if name.endswith(LARGE):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Hub:
    """The repositories, the faults, and what was asked.

    Attributes:
        requests: all of them, in the order in which they came.
        url: for HF_ENDPOINT.
    """

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self._branches: dict[tuple[str, str], str] = {}
        self._commits: dict[str, dict[str, bytes]] = {}
        self._blobs: dict[str, tuple[str, bytes]] = {}
        self._faults: list[tuple[re.Pattern[str], Iterator[Answer | None]]] = []
        self._lock = threading.Lock()
        self._servers = [_Server(self, name) for name in ("hub", "cdn")]
        self.url, self.cdn = (f"http://127.0.0.1:{server.server_port}" for server in self._servers)

    def push(self, repository: str, files: Mapping[str, bytes], branch: str = "main") -> str:
        """Let a branch consist of these files; returns the commit."""
        commit = commit_of(files)
        self._commits[commit] = dict(files)
        self._branches[repository, branch] = commit
        self._blobs |= {
            digest(name, data): (name, data) for name, data in files.items() if name.endswith(LARGE)
        }
        return commit

    def on(self, pattern: str, *answers: Answer | None, always: bool = False) -> None:
        """Answer requests whose "SERVER METHOD PATH" matches: one after the other, or all in the same way.

        None is the proper answer, for the requests that come before the fault.
        """
        self._faults.append((re.compile(pattern), _forever(answers[0]) if always else iter(answers)))

    def answer_to(self, request: Request) -> Answer:
        """Record a request, and find how it is to be answered."""
        with self._lock:
            self.requests.append(request)
            for pattern, answers in self._faults:
                if pattern.search(f"{request.server} {request.method} {request.path}"):
                    return next(answers, None) or Answer()
        return Answer()

    def commit(self, repository: str, revision: str) -> str | None:
        """The commit that a branch or a commit's name stands for; None for an unknown one."""
        named = self._branches.get((repository, revision), revision)
        return named if named in self._commits else None

    def has(self, repository: str) -> bool:
        return any(name == repository for name, _ in self._branches)

    def files(self, commit: str) -> dict[str, bytes]:
        return self._commits[commit]

    def blob(self, sha256: str) -> bytes:
        return self._blobs[sha256][1]

    def asked(self, pattern: str) -> list[Request]:
        """The requests whose "SERVER METHOD PATH" matches."""
        return [
            each for each in self.requests if re.search(pattern, f"{each.server} {each.method} {each.path}")
        ]

    def clear(self) -> None:
        """Forget repositories, faults and requests."""
        with self._lock:
            for each in (self.requests, self._branches, self._commits, self._blobs, self._faults):
                each.clear()

    def close(self) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def __enter__(self) -> "Hub":
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _forever(answer: Answer | None) -> Iterator[Answer | None]:
    while True:
        yield answer


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, hub: Hub, name: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub, self.name = hub, name

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: clients that go away are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._serve()

    def do_GET(self) -> None:
        self._serve()

    def _serve(self) -> None:
        path = unquote(urlsplit(self.path).path)
        hub = self.server.hub
        answer = hub.answer_to(Request(self.server.name, self.command, path, dict(self.headers.items())))
        time.sleep(answer.wait)
        answer.then()
        if answer.status is not None:
            self._send(answer.status, answer.headers, answer.body, answer)
        elif self.server.name == "cdn":
            self._content(hub.blob(path.rpartition("/")[2]), {}, answer)
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+?)(?:/revision/(.+))?", path):
            self._information(found[1], found[2] or "main", answer)
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+?)/tree/(.+)", path):
            self._tree(found[1], found[2], answer)
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve(found[1], found[2], found[3], answer)
        else:
            self._refuse(404, "RepoNotFound", answer)

    def _information(self, repository: str, revision: str, answer: Answer) -> None:
        hub = self.server.hub
        if not hub.has(repository):
            # As the real one: who may not see a repository does not learn that there is none.
            return self._refuse(401, "RepoNotFound", answer)
        commit = hub.commit(repository, revision)
        if commit is None:
            return self._refuse(404, "RevisionNotFound", answer)
        files = hub.files(commit)
        siblings = [{"rfilename": name, **_metadata(name, data)} for name, data in sorted(files.items())]
        if answer.claim is not None:
            siblings[-1]["size"] = answer.claim
        body = json.dumps({"id": repository, "modelId": repository, "sha": commit, "siblings": siblings})
        self._send(200, {"Content-Type": "application/json", **answer.headers}, body.encode(), answer)

    def _tree(self, repository: str, revision: str, answer: Answer) -> None:
        commit = self.server.hub.commit(repository, revision)
        if commit is None:
            return self._refuse(404, "RevisionNotFound", answer)
        entries = []
        for name, data in sorted(self.server.hub.files(commit).items()):
            known = _metadata(name, data)
            entry = {"type": "file", "path": name, "oid": known["blobId"], "size": len(data)}
            if lfs := known.get("lfs"):
                entry["lfs"] = {"oid": lfs["sha256"], "size": len(data), "pointerSize": lfs["pointerSize"]}
            entries.append(entry)
        self._send(200, {"Content-Type": "application/json"}, json.dumps(entries).encode(), answer)

    def _resolve(self, repository: str, revision: str, file: str, answer: Answer) -> None:
        hub = self.server.hub
        commit = hub.commit(repository, revision)
        if commit is None:
            return self._refuse(404, "RevisionNotFound", answer)
        if file not in hub.files(commit):
            return self._refuse(404, "EntryNotFound", answer, {"X-Repo-Commit": commit})
        data = hub.files(commit)[file]
        size = len(data) if answer.claim is None else answer.claim
        etag = digest(file, data)
        headers = {"X-Repo-Commit": commit, "ETag": f'"{etag}"', **answer.headers}
        if not file.endswith(LARGE):
            return self._content(data, headers, answer)
        linked = {"X-Linked-ETag": f'"{etag}"', "X-Linked-Size": str(size), "ETag": '"of-the-pointer"'}
        location = f"{hub.cdn}/{repository}/{etag}"
        self._send(302, {**headers, **linked, "Location": location}, b"", answer)

    def _content(self, data: bytes, headers: Mapping[str, str], answer: Answer) -> None:
        start = int(re.sub(r"bytes=(\d+)-.*", r"\1", self.headers.get("Range", "bytes=0-")))
        ranged = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if start else {}
        self._send(206 if start else 200, {**headers, **ranged}, answer.change(data)[start:], answer)

    def _refuse(
        self, status: int, code: str, answer: Answer, headers: Mapping[str, str] | None = None
    ) -> None:
        self._send(status, {"X-Error-Code": code, "X-Error-Message": code, **(headers or {})}, b"", answer)

    def _send(self, status: int, headers: Mapping[str, str], body: bytes, answer: Answer) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(body if answer.cut is None else body[: answer.cut])
        if answer.cut is not None:
            self.wfile.flush()
            self.close_connection = True


def _metadata(name: str, data: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"size": len(data), "blobId": digest("", data)}
    if name.endswith(LARGE):
        entry["lfs"] = {"size": len(data), "sha256": digest(name, data), "pointerSize": 134}
    return entry


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub for as long as the context lasts."""
    with Hub() as hub:
        yield hub
