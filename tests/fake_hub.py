"""A hub of a few repositories on 127.0.0.1, as far as huggingface_hub, transformers and datasets ask for it.

A repository is a folder: ``<root>/models/owner/name`` or ``<root>/datasets/owner/name``. The client library is told of
it by ``HF_ENDPOINT``, which it reads when it is imported: so programs that shall use it are started anew.
"""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub(ThreadingHTTPServer):
    """Serves the repositories below a folder, and notes what it was asked for."""

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root = root
        self.requests: list[str] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def running(root: Path) -> Iterator[FakeHub]:
    """Serve the repositories below a folder, for a while."""
    hub = FakeHub(root)
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self._answer()

    def do_GET(self):
        self._answer()

    def do_POST(self):
        self._answer()

    def log_message(self, *_):
        """Keep the terminal clean."""

    def _answer(self):
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length)
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        path = unquote(url.path).strip("/")
        self.server.requests.append(f"{self.command} /{path}")
        if path.startswith("api/"):
            self._api(path.removeprefix("api/"))
        elif "/resolve/" in path:
            self._file(path)
        else:
            self._send(200, b"a hub", {})

    def _file(self, path):
        name, _, rest = path.partition("/resolve/")
        file = self._repository(name if name.startswith("datasets/") else f"models/{name}") / rest.partition("/")[2]
        if not file.is_file():
            known = "EntryNotFound" if file.parent.is_dir() else "RepoNotFound"
            self._send(404, b"", {"X-Error-Code": known, "X-Error-Message": known, "X-Repo-Commit": COMMIT})
            return
        content = file.read_bytes()
        headers = {"ETag": f'"{_oid(content)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        start = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")
        if "Range" in self.headers:
            first, last = int(start[0] or 0), int(start[1]) if start[1] else len(content) - 1
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            self._send(206, content[first : last + 1], headers)
        else:
            self._send(200, content, headers)

    def _api(self, path):
        kind, owner, name, *rest = [*path.split("/"), "", "", ""][: max(3, path.count("/") + 1)]
        folder = self._repository(f"{kind}/{owner}/{name}")
        if not folder.is_dir():
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
            return
        files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
        what = rest[0] if rest else "revision"
        if what == "revision":
            siblings = [{"rfilename": file} for file in files]
            facts = {"id": f"{owner}/{name}", "sha": COMMIT, "siblings": siblings, "private": False, "gated": False}
            facts |= {
                "disabled": False,
                "downloads": 0,
                "likes": 0,
                "tags": [],
                "lastModified": "2024-01-01T00:00:00.000Z",
            }
            self._json(facts)
        elif what == "tree":
            below = "/".join(rest[2:])
            deep = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
            self._json(_entries(folder, below, deep))
        elif what == "paths-info":
            asked = (
                json.loads(self.body)["paths"] if self.body.startswith(b"{") else parse_qs(self.body.decode())["paths"]
            )
            self._json([_entry(folder, folder / p) for p in asked if (folder / p).exists()])
        else:
            self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"})

    def _repository(self, name):
        return self.server.root / name

    def _json(self, content):
        self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _send(self, status, content, headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _entries(folder, below, deep):
    found = (folder / below).rglob("*") if deep else (folder / below).glob("*")
    return [_entry(folder, path) for path in sorted(found)]


def _entry(folder, path):
    name = path.relative_to(folder).as_posix()
    if path.is_dir():
        return {"type": "directory", "oid": _oid(name.encode()), "size": 0, "path": name}
    content = path.read_bytes()
    return {"type": "file", "oid": _oid(content), "size": len(content), "path": name}


def _oid(content):
    return hashlib.sha1(content).hexdigest()
