"""A small Kubernetes API over HTTP: objects in memory, list, watch and get, as far as our programs use them.

It keeps what the real one promises: one version for all objects, watches from a version on, 410 for one that is too
old. :meth:`close_connections` and :meth:`stop` are what a server that goes away looks like.
"""

from __future__ import annotations

import contextlib
import json
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.doubles.ports import free_ports

TOKEN = "secret-token"
KINDS = {
    "namespaces": "/api/v1/namespaces",
    "pods": "/api/v1/pods",
    "service_accounts": "/api/v1/serviceaccounts",
    "policies": "/apis/networking.k8s.io/v1/networkpolicies",
}
_BY_PATH = {path: kind for kind, path in KINDS.items()}


class KubernetesApi:
    """``port`` is chosen once and kept. ``refuse``: the status every request gets, 0: none.
    ``tls``: the server's; who shows a certificate that it accepts needs no token.
    ``page``: objects in one answer to a list; ``delay_s`` before any answer; ``lists``: unset, they wait.
    ``agrees_first``: too old a version is told in the watch, as the real one mostly does, and not by its status.
    ``refuse_kinds``: as ``refuse``, of lists and watches of one kind. ``issued``: tokens that were asked for,
    each good for what was asked or ``token_life_s``, by the path of its account."""

    def __init__(self, folder: Path, tls: ssl.SSLContext | None = None) -> None:
        self._folder = folder
        self._tls = tls
        self._condition = threading.Condition()
        self._objects: dict[tuple[str, str, str], dict[str, Any]] = {}
        self._events: list[tuple[int, str, str, dict[str, Any]]] = []
        self._version = 1
        self._oldest = 0
        self._server: ThreadingHTTPServer | None = None
        self._generation = 0
        (self.port,) = free_ports(1)  # kept while it is stopped
        self.token = TOKEN
        self.refuse = 0
        self.agrees_first = False
        self.refuse_kinds: dict[str, int] = {}
        self.lists = threading.Event()
        self.lists.set()
        self.delay_s = 0.0
        self.page = 2
        self.requests: list[str] = []
        self.token_life_s = 0
        self.issued: list[tuple[str, str]] = []
        self.start()

    @property
    def url(self) -> str:
        return f"{'http' if self._tls is None else 'https'}://127.0.0.1:{self.port}"

    def kubeconfig(
        self,
        token: str = TOKEN,
        *,
        name: str = "kubeconfig",
        user: dict[str, Any] | None = None,
        cluster: dict[str, Any] | None = None,
    ) -> str:
        """Written to the folder; its path. ``user`` in place of the one with the ``token``; ``cluster``: further
        keys."""
        path = self._folder / name
        path.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "here",
                    "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u"}}],
                    "clusters": [{"name": "c", "cluster": {"server": self.url, **(cluster or {})}}],
                    "users": [{"name": "u", "user": {"token": token} if user is None else user}],
                }
            )
        )
        return str(path)

    def put(self, kind: str, name: str, namespace: str = "", **body: Any) -> dict[str, Any]:
        """``labels``, ``annotations`` and ``uid`` go to the metadata, the rest beside it."""
        with self._condition:
            key = (kind, namespace, name)
            what = "MODIFIED" if key in self._objects else "ADDED"
            self._version += 1
            metadata = {"name": name, "resourceVersion": str(self._version), "uid": body.pop("uid", f"uid-{name}")}
            if namespace:
                metadata["namespace"] = namespace
            for field in ("labels", "annotations"):
                if field in body:
                    metadata[field] = body.pop(field)
            self._objects[key] = {"metadata": metadata, **body}
            self._tell(what, kind, self._objects[key])
            return self._objects[key]

    def delete(self, kind: str, name: str, namespace: str = "") -> None:
        with self._condition:
            gone = self._objects.pop((kind, namespace, name))
            self._version += 1
            gone = {**gone, "metadata": {**gone["metadata"], "resourceVersion": str(self._version)}}
            self._tell("DELETED", kind, gone)

    def forget_history(self) -> None:
        """As after a compaction: watches end, and no earlier version can be watched from."""
        with self._condition:
            self._version += 1
            self._oldest = self._version
            self._events.clear()
            self._generation += 1
            self._condition.notify_all()

    def restore_empty(self) -> None:
        """As from a backup that is older than everything: versions begin anew, and nobody is told."""
        with self._condition:
            self._version, self._oldest = 1, 0
            self._objects.clear()
            self._events.clear()
            self._generation += 1
            self._condition.notify_all()

    def start(self) -> None:
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                with contextlib.suppress(OSError):  # who asked has hung up
                    api._answer(self)

            def do_POST(self) -> None:
                with contextlib.suppress(OSError):
                    api._issue(self)

            def log_message(self, *_arguments: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            allow_reuse_address = True

        assert self._server is None
        self._server = Server(("127.0.0.1", self.port), Handler)
        if self._tls is not None:
            self._server.socket = self._tls.wrap_socket(self._server.socket, server_side=True)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Stopped already is fine."""
        with self._condition:
            server, self._server = self._server, None
            self._generation += 1
            self._condition.notify_all()
        if server is not None:
            server.shutdown()
            server.server_close()

    # --- answers ------------------------------------------------------------------------------------

    def _tell(self, what: str, kind: str, item: dict[str, Any]) -> None:
        self._events.append((self._version, what, kind, item))
        self._condition.notify_all()

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(request.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        self.requests.append(request.path)
        time.sleep(self.delay_s)
        if self._server is None:
            request.close_connection = True
            return
        refuse = self.refuse or self.refuse_kinds.get(_BY_PATH.get(parts.path, ""), 0)
        if refuse:
            _reply(request, refuse, {"kind": "Status", "code": refuse, "message": "refused"})
        elif not self._knows(request):
            _reply(request, 401, {"kind": "Status", "code": 401, "message": "Unauthorized"})
        elif parts.path in _BY_PATH and "watch" in query:
            self._watch(request, _BY_PATH[parts.path], int(query["resourceVersion"]))
        elif parts.path in _BY_PATH:
            self._list(request, _BY_PATH[parts.path], int(query.get("continue", "0")))
        else:
            self._get(request, parts.path)

    def _knows(self, request: BaseHTTPRequestHandler) -> bool:
        if isinstance(request.connection, ssl.SSLSocket) and request.connection.getpeercert():
            return True
        return request.headers.get("Authorization") == f"Bearer {self.token}"

    def _issue(self, request: BaseHTTPRequestHandler) -> None:
        """A token of a service account, as the subresource ``token`` does."""
        self.requests.append(request.path)
        wanted = json.loads(request.rfile.read(int(request.headers["Content-Length"])))
        account = request.path.strip("/").split("/")
        known = [account[3], account[5]] if account[4:5] == ["serviceaccounts"] and account[6:] == ["token"] else []
        if self.refuse:
            _reply(request, self.refuse, {"kind": "Status", "code": self.refuse, "message": "refused"})
        elif not self._knows(request):
            _reply(request, 401, {"kind": "Status", "code": 401, "message": "Unauthorized"})
        elif ("service_accounts", *known) not in self._objects:
            _reply(request, 404, {"kind": "Status", "code": 404, "message": f"{request.path} not found"})
        elif wanted["kind"] != "TokenRequest" or request.headers["Content-Type"] != "application/json":
            _reply(request, 400, {"kind": "Status", "code": 400, "message": "no TokenRequest"})
        else:
            life_s = self.token_life_s or wanted["spec"]["expirationSeconds"]
            token = f"{self.token}-issued-{len(self.issued)}"
            self.issued.append(("/".join(known), token))
            _reply(request, 201, {"spec": {"expirationSeconds": life_s}, "status": {"token": token}})

    def _get(self, request: BaseHTTPRequestHandler, path: str) -> None:
        match path.strip("/").split("/"):
            case ["api", "v1", "namespaces", name]:
                found = self._objects.get(("namespaces", "", name))
            case ["version"]:
                found = {"major": "1", "minor": "33"}
            case ["api", "v1", "nodes", name]:
                found = self._objects.get(("nodes", "", name))
            case ["api", "v1", "namespaces", namespace, "pods", name]:
                found = self._objects.get(("pods", namespace, name))
            case _:
                found = None
        if found is None:
            _reply(request, 404, {"kind": "Status", "code": 404, "message": f"{path} not found"})
        else:
            _reply(request, 200, found)

    def _list(self, request: BaseHTTPRequestHandler, kind: str, start: int) -> None:
        self.lists.wait()
        with self._condition:
            items = [item for (of, _, _), item in sorted(self._objects.items()) if of == kind]
            version = self._version
        metadata = {"resourceVersion": str(version)}
        if start + self.page < len(items):
            metadata["continue"] = str(start + self.page)
        _reply(request, 200, {"metadata": metadata, "items": items[start : start + self.page]})

    def _watch(self, request: BaseHTTPRequestHandler, kind: str, after: int) -> None:
        with self._condition:
            generation = self._generation
            is_gone = after < self._oldest
        gone = {"kind": "Status", "code": 410, "message": "too old"}
        if is_gone and not self.agrees_first:
            _reply(request, 410, gone)
            return
        request.send_response(200)
        request.send_header("Transfer-Encoding", "chunked")
        request.end_headers()
        try:
            if is_gone:
                _chunk(request, json.dumps({"type": "ERROR", "object": gone}).encode() + b"\n")
                request.close_connection = True
                return
            while True:
                with self._condition:
                    self._condition.wait_for(
                        lambda seen=after: self._generation != generation or self._version > seen, timeout=0.5
                    )
                    if self._generation != generation:
                        break
                    events = [
                        (what, item) for version, what, of, item in self._events if version > after and of == kind
                    ]
                    after = self._version
                for what, item in events:
                    _chunk(request, json.dumps({"type": what, "object": item}).encode() + b"\n")
            request.close_connection = True
        except OSError:
            request.close_connection = True


def _reply(request: BaseHTTPRequestHandler, status: int, body: dict[str, Any]) -> None:
    text = json.dumps(body).encode()
    request.send_response(status)
    request.send_header("Content-Length", str(len(text)))
    request.end_headers()
    request.wfile.write(text)


def _chunk(request: BaseHTTPRequestHandler, data: bytes) -> None:
    request.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
    request.wfile.flush()
