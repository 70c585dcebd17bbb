"""A Hub of our own: serves folders as models, as far as `snapshot_download` asks."""

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def hub(models):
    """Serve `models`, `dict` of Hub id to folder; yields the address and the list of paths that were asked for."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            path = unquote(self.path.split("?")[0])
            asked.append(path)
            for hub_id, folder in models.items():
                if path.startswith(f"/api/models/{hub_id}/tree/"):
                    return self._answer(json.dumps(_tree(folder)).encode(), "application/json")
                if path.startswith(f"/api/models/{hub_id}/"):
                    return self._answer(json.dumps(_description(hub_id, folder)).encode(), "application/json")
                if path.startswith(f"/{hub_id}/resolve/"):
                    return self._answer((folder / path.split("/", 5)[5]).read_bytes(), "application/octet-stream")
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            return self.end_headers()

        do_HEAD = do_GET

        def _answer(self, content, content_type):
            self.send_response(200)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()


def _description(hub_id, folder):
    return {"id": hub_id, "sha": COMMIT, "siblings": [{"rfilename": entry["path"]} for entry in _tree(folder)]}


def _tree(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [
        {
            "type": "file",
            "path": str(path.relative_to(folder)),
            "size": path.stat().st_size,
            "oid": hashlib.sha1(path.read_bytes()).hexdigest(),
        }
        for path in files
    ]
