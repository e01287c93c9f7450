"""A server of this machine that speaks as much of the Hub's protocol as pushing and pulling small files takes."""

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """The files of all repositories, by repository and path. Only `token` may write; names with "private" read too."""

    protocol_version = "HTTP/1.1"
    repositories: dict[str, dict[str, bytes]]
    token = "hf_right"

    def do_POST(self) -> None:
        parts, body = self._parts(), self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if parts[-1] == "validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif self.headers.get("Authorization") != f"Bearer {self.token}":
            self._answer({"error": "Invalid username or password."}, 401)
        elif parts == ["api", "repos", "create"]:
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            self.repositories.setdefault(name, {})
            kind = "datasets/" if asked.get("type") == "dataset" else ""
            self._answer({"url": f"http://{self.headers['Host']}/{kind}{name}"})
        elif parts[4] == "preupload":
            files = [{"path": file["path"], "uploadMode": "regular"} for file in json.loads(body)["files"]]
            self._answer({"files": [file | {"shouldIgnore": False} for file in files]})
        elif parts[4] == "commit":
            self._commit("/".join(parts[2:4]), body)
            url = f"http://{self.headers['Host']}/{'/'.join(parts[2:4])}/commit/{COMMIT}"
            self._answer({"success": True, "commitOid": COMMIT, "commitUrl": url, "hookOutput": ""})

    def do_GET(self) -> None:
        parts = self._parts()
        if parts[:2] in (["api", "models"], ["api", "datasets"]):
            self._describe("/".join(parts[2:4]), parts[4:])
        elif parts[0] == "datasets":
            self._file("/".join(parts[1:3]), "/".join(parts[5:]))
        else:
            self._file("/".join(parts[:2]), "/".join(parts[4:]))

    do_HEAD = do_GET

    def log_message(self, *_: Any) -> None:
        """Nothing is printed."""

    def _parts(self) -> list[str]:
        return [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]

    def _commit(self, name: str, body: bytes) -> None:
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                self.repositories[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "deletedFile":
                del self.repositories[name][line["value"]["path"]]

    def _describe(self, name: str, rest: list[str]) -> None:
        if name not in self.repositories:
            self._answer({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
            return
        files = self.repositories[name]
        if rest[:1] == ["tree"]:
            entries = [
                {"type": "file", "path": path, "size": len(data), "oid": _oid(data)} for path, data in files.items()
            ]
            self._answer(entries)
        else:
            siblings = [{"rfilename": path} for path in files]
            self._answer(
                {"id": name, "sha": COMMIT, "siblings": siblings, "private": False, "tags": [], "downloads": 0}
            )

    def _file(self, name: str, path: str) -> None:
        data = self.repositories[name][path]
        self._answer(data, 200, {"ETag": f'"{_oid(data)}"', "X-Repo-Commit": COMMIT})

    def _answer(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in {
            "Content-Length": str(len(data)),
            "Content-Type": "application/json",
            **(headers or {}),
        }.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _oid(data: bytes) -> str:
    return sha1(data).hexdigest()


@contextmanager
def local_hub() -> Iterator[tuple[str, dict[str, dict[str, bytes]]]]:
    """The address of an empty hub, and its repositories."""
    repositories: dict[str, dict[str, bytes]] = {}
    handler = type("LocalHub", (Hub,), {"repositories": repositories})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", repositories
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


SAYING = """
import sys
from csrec_dist import Dataset, Recommender, load_labels
from csrec_dist.errors import UserError
for line in sys.stdin:
    try:
        print("result", eval(line))
    except UserError as error:
        print("error", error)
"""


def said(endpoint: str, folder: Path, *lines: str) -> list[str]:
    """What a process says of these lines, whose Hub is at `endpoint`; the Hub's library reads that when imported."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environ |= {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(folder / "hf"),
        "PYTHONPATH": str(ROOT),
        "HF_HUB_DISABLE_XET": "1",
    }
    command = [sys.executable, "-c", SAYING]
    text = "\n".join(lines)
    done = subprocess.run(command, cwd=folder, env=environ, input=text, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return [line for line in done.stdout.splitlines() if line.startswith(("result ", "error "))]
