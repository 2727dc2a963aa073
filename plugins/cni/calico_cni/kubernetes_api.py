"""Questions to the Kubernetes API, for a call that must not wait long: two seconds in all, and connections kept open.

No client library: a pod's start should not pay for one.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import time
from collections.abc import Callable
from typing import NamedTuple, TypeVar
from urllib.parse import quote

import msgspec

from calico_cni.errors import PolicySourceFailed
from calico_cni.kubeconfig import Access, AccessReader, Source
from calico_core.errors import NotReady
from calico_core.model.kubernetes import Namespace, Node, Pod

BUDGET_S = 2.0
ATTEMPT_S = 0.9
_PAUSE_S = 0.1
_KEPT = 16
_GOOD = frozenset({200, 201})
_TRY_AGAIN = frozenset({429, 500, 502, 503, 504})


class _Question(NamedTuple):
    method: str
    path: str
    content: bytes


class _Anything(msgspec.Struct, frozen=True):
    """A JSON object."""


class _TokenSpec(msgspec.Struct, frozen=True, rename="camel"):
    expiration_seconds: int = 0


class _TokenStatus(msgspec.Struct, frozen=True):
    token: str = ""


class _TokenReply(msgspec.Struct, frozen=True):
    spec: _TokenSpec = _TokenSpec()
    status: _TokenStatus = _TokenStatus()

    def __repr__(self) -> str:
        """Without the token."""
        return f"_TokenReply({self.spec})"


ObjectT = TypeVar("ObjectT", Namespace, Node, Pod, _Anything, _TokenReply)


class KubernetesApi:
    """Of one source. Any thread."""

    def __init__(self, source: Source, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._reader = AccessReader(source)
        self._clock = clock
        self._idle: list[tuple[Access, http.client.HTTPConnection]] = []

    def pod(self, namespace: str, name: str) -> Pod:
        """:raises NotReady: the API does not answer; :raises PolicySourceFailed: it refuses, or has no such pod."""
        return self._call("GET", f"/api/v1/namespaces/{quote(namespace, '')}/pods/{quote(name, '')}", Pod)

    def namespace(self, name: str) -> Namespace:
        """Raises as :meth:`pod`."""
        return self._call("GET", f"/api/v1/namespaces/{quote(name, '')}", Namespace)

    def node(self, name: str) -> Node:
        """Raises as :meth:`pod`."""
        return self._call("GET", f"/api/v1/nodes/{quote(name, '')}", Node)

    def check(self) -> None:
        """Whether it answers and takes our credentials. Raises as :meth:`pod`."""
        self._call("GET", "/version", _Anything)

    def request_token(self, namespace: str, account: str, *, life_s: int) -> tuple[str, int]:
        """A token of a service account, and how many seconds it is good for. Raises as :meth:`pod`."""
        path = f"/api/v1/namespaces/{quote(namespace, '')}/serviceaccounts/{quote(account, '')}/token"
        wanted = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"expirationSeconds": life_s},
        }
        found = self._call("POST", path, _TokenReply, msgspec.json.encode(wanted))
        token = found.status.token
        if not token or not token.isprintable():
            raise PolicySourceFailed(f"{path}: the answer holds no token")
        return token, found.spec.expiration_seconds or life_s

    def close(self) -> None:
        while self._idle:
            self._idle.pop()[1].close()

    def _call(self, method: str, path: str, kind: type[ObjectT], content: bytes = b"") -> ObjectT:
        access = self._reader.read()
        deadline = self._clock() + BUDGET_S
        while True:
            reason = "no answer"
            try:
                timeout_s = max(_PAUSE_S, min(ATTEMPT_S, deadline - self._clock()))
                status, body = self._attempt(access, _Question(method, path, content), timeout_s)
                if status in _GOOD:
                    return _decode(path, body, kind)
                if status not in _TRY_AGAIN:
                    raise PolicySourceFailed(f"{path}: status {status} {http.client.responses.get(status, '')}")
                reason = f"status {status}"
            except ssl.SSLCertVerificationError as error:
                reason = f"its certificate is not accepted: {error.verify_message}"
                raise PolicySourceFailed(f"the Kubernetes API at {access.host}:{access.port}: {reason}") from error
            except (OSError, http.client.HTTPException) as error:
                reason = str(error) or type(error).__name__
            if self._clock() + _PAUSE_S >= deadline:
                raise NotReady(f"the Kubernetes API at {access.host}:{access.port}: {reason}")
            time.sleep(_PAUSE_S)

    def _attempt(self, access: Access, question: _Question, timeout_s: float) -> tuple[int, bytes]:
        """On a connection that was kept, if the server has not closed it since; else on a new one."""
        while (kept := self._kept(access)) is not None:
            try:
                return self._ask(access, kept, question, timeout_s)
            except (ConnectionError, http.client.BadStatusLine):
                continue
        return self._ask(access, _connection(access, timeout_s), question, timeout_s)

    def _ask(
        self, access: Access, connection: http.client.HTTPConnection, question: _Question, timeout_s: float
    ) -> tuple[int, bytes]:
        try:
            if isinstance(connection.sock, socket.socket):
                connection.sock.settimeout(timeout_s)
            method, path, content = question
            headers = access.headers | ({"Content-Type": "application/json"} if content else {})
            connection.request(method, access.prefix + path, content or None, headers)
            response = connection.getresponse()
            body = response.read()
        except BaseException:
            connection.close()
            raise
        if response.will_close or len(self._idle) >= _KEPT:
            connection.close()
        else:
            self._idle.append((access, connection))
        return response.status, body

    def _kept(self, access: Access) -> http.client.HTTPConnection | None:
        """One that is idle; those of earlier credentials are closed."""
        while self._idle:
            try:
                of, connection = self._idle.pop()
            except IndexError:  # another thread took the last
                return None
            if of is access:
                return connection
            connection.close()
        return None


def _connection(access: Access, timeout_s: float) -> http.client.HTTPConnection:
    if access.context is None:
        return http.client.HTTPConnection(access.host, access.port, timeout=timeout_s)
    return _tls_connection(access, access.context, timeout_s)


def _tls_connection(access: Access, context: ssl.SSLContext, timeout_s: float) -> http.client.HTTPConnection:
    server_name = access.server_name or access.host

    # here, as a class of the module would read what a call without Kubernetes postpones
    class TlsConnection(http.client.HTTPConnection):
        """To a server whose certificate may have another name than its address."""

        def connect(self) -> None:
            super().connect()
            self.sock = context.wrap_socket(self.sock, server_hostname=server_name)

    return TlsConnection(access.host, access.port, timeout=timeout_s)


def _decode(path: str, body: bytes, kind: type[ObjectT]) -> ObjectT:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise PolicySourceFailed(f"{path}: {error}") from error
