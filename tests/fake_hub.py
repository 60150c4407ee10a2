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

    def do_GET(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        path = unquote(url.path).strip("/")
        self.server.requests.append(f"{self.command} /{path}")
        if path.startswith("api/"):
            self._describe(path.split("/")[1:], parse_qs(url.query), body)
        elif "/resolve/" in path:
            name, _, rest = path.partition("/resolve/")
            self._send_file(name if name.startswith("datasets/") else f"models/{name}", rest.partition("/")[2])
        else:
            self._send(200, b"a hub")

    def do_HEAD(self):
        self.do_GET()

    def do_POST(self):
        self.do_GET()

    def log_message(self, *_):
        """Keep the terminal clean."""

    def _send_file(self, repository, name):
        file = self.server.root / repository / name
        if not file.is_file():
            self._refuse("EntryNotFound" if (self.server.root / repository).is_dir() else "RepoNotFound")
            return
        content = file.read_bytes()
        headers = {"ETag": f'"{_oid(content)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if "Range" not in self.headers:
            self._send(200, content, **headers)
            return
        first, last = self.headers["Range"].removeprefix("bytes=").split("-")
        first, last = int(first), int(last or len(content) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        self._send(206, content[first : last + 1], **headers)

    def _describe(self, path, query, body):
        """Answer ``<kind>/<owner>/<name>[/<what>...]``."""
        folder, (what, *rest) = self.server.root.joinpath(*path[:3]), path[3:] or ["revision"]
        if len(path) < 3 or not folder.is_dir():
            self._refuse("RepoNotFound")
        elif what == "revision":
            self._send_json(_facts(folder, "/".join(path[1:3])))
        elif what == "tree":
            below = folder.joinpath(*rest[1:])
            found = (
                below.rglob("*") if query.get("recursive", ["false"])[0].lower() in ("true", "1") else below.glob("*")
            )
            self._send_json([_entry(folder, path) for path in sorted(found)])
        elif what == "paths-info":
            asked = json.loads(body)["paths"] if body.startswith(b"{") else parse_qs(body.decode())["paths"]
            self._send_json([_entry(folder, folder / name) for name in asked if (folder / name).exists()])
        else:
            self._refuse("EntryNotFound")

    def _refuse(self, code):
        self._send(404, b"{}", **{"X-Error-Code": code, "X-Error-Message": code, "X-Repo-Commit": COMMIT})

    def _send_json(self, content):
        self._send(200, json.dumps(content).encode(), **{"Content-Type": "application/json"})

    def _send(self, status, content, **headers):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _facts(folder, name):
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    siblings = [{"rfilename": file} for file in files]
    flags = dict.fromkeys(("private", "gated", "disabled"), False)
    when = "2024-01-01T00:00:00.000Z"
    return {"id": name, "sha": COMMIT, "siblings": siblings, "tags": [], "lastModified": when, **flags}


def _entry(folder, path):
    name = path.relative_to(folder).as_posix()
    if path.is_dir():
        return {"type": "directory", "oid": _oid(name.encode()), "size": 0, "path": name}
    content = path.read_bytes()
    return {"type": "file", "oid": _oid(content), "size": len(content), "path": name}


def _oid(content):
    return hashlib.sha1(content).hexdigest()
