"""A server on this machine that speaks as much of the hub's protocol as the real client asks for.

    server.add("me/clip", {"config.json": b"..."})     a commit on the main branch; gives its id
    server.asked                                        (method, path, Range) of all requests

Repositories may be private, gated or renamed; a file may be cut on its way or be damaged.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading
import urllib.parse

TOKEN = "hf_test"
LFS = (".safetensors", ".bin")  # stored as LFS, which have a SHA-256


def git_hash(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def sha256(content):
    return hashlib.sha256(content).hexdigest()


class HubServer(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.commits, self.refs, self.renamed = {}, {}, {}
        self.private, self.gated = set(), set()
        self.cuts, self.damaged = {}, {}  # {file: bytes until the next cuts}, {file: content}
        self.uploaded, self.asked, self.failing = {}, [], 0

    def add(self, repository, files, branch="main"):
        commit = hashlib.sha1(f"{repository}{sorted(files.items())}".encode()).hexdigest()
        self.commits[repository, commit] = dict(files)
        self.refs[repository, branch] = commit
        return commit

    def files_at(self, repository, revision):
        commit = self.refs.get((repository, revision), revision)
        return commit, self.commits.get((repository, commit))

    def downloads(self):
        """Names of the files whose bytes were sent, in order."""
        found = (
            re.fullmatch(r"/.+/resolve/[^/]+/(.+)", path) for m, path, _ in self.asked if m == "GET"
        )
        return [match[1] for match in found if match]


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self._answer(send=False)

    def do_GET(self):
        self._answer(send=True)

    def _answer(self, send):
        hub = self.server
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        hub.asked.append((self.command, path, self.headers.get("Range")))
        if hub.failing:
            return self._error(hub.failing)
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/(.+))?", path):
            return self._open(match[1], "/api/models/", match[3] or "main", None, send)
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._open(match[1], "/", match[2], match[3], send)
        return self._error(404)

    def _open(self, repository, prefix, revision, file, send):
        """Answers for a repository, or a file of it, if the client may see it."""
        hub = self.server
        if new := hub.renamed.get(repository):
            self.send_response(307)
            self.send_header("Location", self.path.replace(repository, new, 1))
            self.send_header("Content-Length", "0")
            return self.end_headers()
        knows = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if not any(name == repository for name, _ in hub.commits):
            return self._error(404 if knows else 401, "RepoNotFound")
        if repository in hub.private and not knows:
            return self._error(401, "RepoNotFound")
        if repository in hub.gated:
            return self._error(403 if knows else 401, "GatedRepo")
        commit, files = hub.files_at(repository, revision)
        if files is None:
            return self._error(404, "RevisionNotFound")
        if file is None:
            return self._json(self._info(repository, commit, files))
        if file not in files:
            return self._error(404, "EntryNotFound")
        return self._file(file, files[file], commit, send)

    def _info(self, repository, commit, files):
        siblings = []
        for name, content in files.items():
            entry = {"rfilename": name, "size": len(content), "blobId": git_hash(content)}
            if name.endswith(LFS):
                entry["lfs"] = {"sha256": sha256(content), "size": len(content), "pointerSize": 130}
            siblings.append(entry)
        about = {"private": repository in self.server.private, "tags": [], "downloads": 0}
        return {"id": repository, "sha": commit, "siblings": siblings, **about}

    def _file(self, name, content, commit, send):
        etag = sha256(content) if name.endswith(LFS) else git_hash(content)
        sent = self.server.damaged.get(name, content)
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        first = int(asked[1]) if asked else 0
        self.send_response(206 if asked else 200)
        for header, value in {
            "X-Repo-Commit": commit, "ETag": f'"{etag}"', "X-Linked-Etag": f'"{etag}"',
            "X-Linked-Size": str(len(content)), "Accept-Ranges": "bytes",
            "Content-Length": str(len(sent) - first),
            **({"Content-Range": f"bytes {first}-{len(sent) - 1}/{len(sent)}"} if asked else {}),
        }.items():  # fmt: skip
            self.send_header(header, value)
        self.end_headers()
        if not send:
            return
        if cuts := self.server.cuts.get(name):
            self.wfile.write(sent[first : first + cuts.pop(0)])
            self.close_connection = True
        else:
            self.wfile.write(sent[first:])

    def do_POST(self):
        hub, body = self.server, self._body()
        path = urllib.parse.urlsplit(self.path).path
        hub.asked.append(("POST", path, None))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._error(401)
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            if name.startswith("others/"):
                return self._error(403)
            if not any(name == known for known, _ in hub.commits):
                hub.add(name, {})
            return self._json({"url": f"{hub.url}/{name}", "name": name, "id": name})
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if match := re.fullmatch(r"/api/models/(.+/.+)/preupload/main", path):
            modes = [
                {"path": file["path"], "shouldIgnore": False,
                 "uploadMode": "lfs" if file["path"].endswith(LFS) else "regular"}
                for file in json.loads(body)["files"]
            ]  # fmt: skip
            return self._json({"files": modes})
        if path.endswith(".git/info/lfs/objects/batch"):
            upload = {"href": f"{hub.url}/upload"}
            objects = [
                {**entry, "actions": {"upload": {"href": f"{upload['href']}/{entry['oid']}"}}}
                for entry in json.loads(body)["objects"]
            ]
            return self._json({"transfer": "basic", "objects": objects})
        if match := re.fullmatch(r"/api/models/(.+/.+)/commit/main", path):
            return self._commit(match[1], body)
        return self._error(404)

    def _commit(self, repository, body):
        hub, (_, files) = self.server, self.server.files_at(repository, "main")
        files = dict(files)
        for entry in map(json.loads, body.splitlines()):
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = hub.uploaded[value["oid"]]
        commit = hub.add(repository, files)
        url = f"{hub.url}/{repository}/commit/{commit}"
        return self._json({"commitUrl": url, "commitOid": commit, "success": True})

    def do_PUT(self):
        content = self._body()
        self.server.uploaded[sha256(content)] = content
        self._json({})

    def _body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers["Content-Length"] or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _json(self, value):
        text = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    def _error(self, status, code=""):
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


@contextlib.contextmanager
def serving():
    """A server in a thread of its own."""
    server = HubServer()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
