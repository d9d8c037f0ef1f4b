"""A server on loopback that speaks the Hugging Face hub's API as far as a push needs it.

Repositories live in memory. Files above `LFS_BYTES` go by LFS; what is sent is checked against its
SHA-256, as the hub does.
"""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import re
import threading
from typing import Any

LFS_BYTES = 1000
TOKEN = "hf_test"


class HubServer(http.server.ThreadingHTTPServer):
    """The hub.

    Attributes:
        repos: For each repository whether it is private, and its files.
        objects: What LFS holds, by SHA-256.
        puts: The SHA-256 of each object that was sent, in order.
        commits: The message of each commit, in order.
        refuse_after: How many objects are taken before every further one is refused.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, dict[str, Any]] = {}
        self.objects: dict[str, bytes] = {}
        self.puts: list[str] = []
        self.commits: list[str] = []
        self.refuse_after = 10**9
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def files(self, repo: str) -> dict[str, bytes]:
        """The files of a repository by their paths."""
        found: dict[str, bytes] = self.repos[repo]["files"]
        return found


class _Handler(http.server.BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: Any) -> None:
        return None

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _answer(self, value: Any = None, status: int = 200, **headers: str) -> None:
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        for name, text in headers.items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _refused(self) -> bool:
        if self.headers.get("Authorization") == f"Bearer {TOKEN}":
            return False
        self._answer({"error": "Invalid username or password."}, 401)
        return True

    def do_PUT(self) -> None:
        body, oid = self._body(), self.path.rpartition("/")[2]
        if len(self.server.puts) >= self.server.refuse_after:
            return self._answer(b"no", 400)
        assert hashlib.sha256(body).hexdigest() == oid
        self.server.objects[oid] = body
        self.server.puts.append(oid)
        self._answer(b"")

    def do_POST(self) -> None:
        body = self._body()
        if self._refused():
            return None
        hub = self.server
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            status = 409 if name in hub.repos else 200
            hub.repos.setdefault(name, {"private": _is_private(asked), "files": {}})
            return self._answer({"url": f"{hub.url}/datasets/{name}"}, status)
        if self.path == "/api/validate-yaml":  # asked before a card is committed
            return self._answer({"errors": [], "warnings": []})
        if found := re.fullmatch(r"/datasets/(.+)\.git/info/lfs/objects/batch", self.path):
            objects = []
            for entry in json.loads(body)["objects"]:
                upload = {"upload": {"href": f"{hub.url}/lfs/{entry['oid']}"}}
                is_new = entry["oid"] not in hub.objects
                objects.append({**entry, **({"actions": upload} if is_new else {})})
            return self._answer({"transfer": "basic", "objects": objects})
        found = re.fullmatch(r"/api/datasets/(.+)/(preupload|commit)/main", self.path)
        if not found or found[1] not in hub.repos:
            return self._answer({"error": "Repository not found"}, 404)
        files = hub.files(found[1])
        if found[2] == "preupload":
            told = []
            for entry in json.loads(body)["files"]:
                mode = "lfs" if entry["size"] > LFS_BYTES else "regular"
                told.append({"path": entry["path"], "uploadMode": mode, "shouldIgnore": False})
                if entry["path"] in files:
                    told[-1]["oid"] = _oid(files[entry["path"]], mode)
            return self._answer({"files": told})
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                hub.commits.append(value["summary"])
            elif entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = hub.objects[value["oid"]]
            elif entry["key"] == "deletedFile":
                del files[value["path"]]
        commit = hashlib.sha1(body).hexdigest()
        url = f"{hub.url}/datasets/{found[1]}/commit/{commit}"
        return self._answer({"success": True, "commitOid": commit, "commitUrl": url})

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if self._refused():
            return None
        path = self.path.partition("?")[0]
        if found := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)(?:/revision/main)?", path):
            if found[1] not in self.server.repos:
                return self._answer({"error": "Repository not found"}, 404)
            siblings = [{"rfilename": name} for name in self.server.files(found[1])]
            return self._answer({"id": found[1], "sha": "0" * 40, "siblings": siblings})
        if found := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/tree/main", path):
            tree = [
                {"type": "file", "path": name, "size": len(content), "oid": _oid(content, "")}
                for name, content in self.server.files(found[1]).items()
            ]
            return self._answer(tree)
        if found := re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/main/(.+)", path):
            content = self.server.files(found[1])[found[2]]
            etag = {"ETag": f'"{_oid(content, "")}"', "X_Repo_Commit": "0" * 40}
            return self._answer(content, **etag)
        return self._answer({"error": "not found"}, 404)


def _oid(content: bytes, mode: str) -> str:
    if mode == "lfs":
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


def _is_private(asked: dict[str, Any]) -> bool:
    return bool(asked.get("private")) or asked.get("visibility") == "private"
