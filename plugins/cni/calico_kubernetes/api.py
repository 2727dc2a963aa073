"""The Kubernetes API as a list and a watch of each kind. The only importer of the ``kubernetes`` package.

Its client does connection, TLS and credentials; objects are decoded by our own types, because its models are slow and
take megabytes for what we do not look at. A source is cheap: a new one for each connection picks up new credentials.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import msgspec

from calico_core.errors import CalicoError, InvalidSettings
from calico_core.model.kubernetes import Metadata, Namespace, Pod, ServiceAccount
from calico_core.settings import IN_CLUSTER
from calico_kubernetes.objects import NetworkPolicy

ObjectT = TypeVar("ObjectT", Namespace, Pod, ServiceAccount, NetworkPolicy)

PAGE = 500
CONNECT_TIMEOUT_S = 2.0
READ_TIMEOUT_S = 15.0
WATCH_S = 60
"""A watch is ended by the server after this, so that one that is dead without a word is noticed, too."""
_OK = 200
_GONE = 410


class ApiError(CalicoError):
    """The API did not do what was asked; it may later."""

    retryable = True


class HistoryGone(ApiError):
    """The version to watch from is too old: list again."""


class Kind(NamedTuple, Generic[ObjectT]):
    """``path`` of its list over all namespaces; ``item`` is what an object decodes to."""

    name: str
    path: str
    item: type[ObjectT]


NAMESPACES = Kind("namespaces", "/api/v1/namespaces", Namespace)
PODS = Kind("pods", "/api/v1/pods", Pod)
SERVICE_ACCOUNTS = Kind("service_accounts", "/api/v1/serviceaccounts", ServiceAccount)
POLICIES = Kind("policies", "/apis/networking.k8s.io/v1/networkpolicies", NetworkPolicy)
KINDS: tuple[Kind[Any], ...] = (NAMESPACES, PODS, SERVICE_ACCOUNTS, POLICIES)


class Happened(NamedTuple, Generic[ObjectT]):
    """``bookmark`` only moves the version to watch from."""

    type: Literal["put", "deleted", "bookmark"]
    item: ObjectT


class _ListMetadata(msgspec.Struct, frozen=True, rename="camel"):
    resource_version: str = ""
    continuation: str = msgspec.field(default="", name="continue")


class _List(msgspec.Struct, frozen=True):
    metadata: _ListMetadata
    items: list[msgspec.Raw] | None = None


class _Event(msgspec.Struct, frozen=True):
    type: str
    object: msgspec.Raw


class _Status(msgspec.Struct, frozen=True):
    code: int = 0
    message: str = ""
    metadata: Metadata = Metadata()


class Api:
    """One connection's worth of credentials. Calls come from one thread, but for :meth:`interrupt`."""

    def __init__(self, kubeconfig: str) -> None:
        """:raises InvalidSettings: the file cannot be used."""
        self._client, self._host, self._headers = _client(kubeconfig)
        self._watched: Any = None

    def check_access(self) -> None:
        """Each kind may be listed.

        :raises ApiError: no answer, or a refusal.
        """
        for kind in KINDS:
            _body(self._get(kind.path, {"limit": "1"}, READ_TIMEOUT_S))

    def list(self, kind: Kind[ObjectT]) -> tuple[list[ObjectT], str]:
        """All objects, and the version to watch from.

        :raises ApiError: no answer, or a refusal.
        """
        found: list[ObjectT] = []
        query: dict[str, str] = {"limit": str(PAGE)}
        while True:
            response = self._get(kind.path, query, READ_TIMEOUT_S)
            try:
                page = msgspec.json.decode(_body(response), type=_List)
                found += [msgspec.json.decode(each, type=kind.item) for each in page.items or ()]
            except msgspec.DecodeError as error:
                raise ApiError(f"list of {kind.name}: {error}") from error
            if not page.metadata.continuation:
                return found, page.metadata.resource_version
            query["continue"] = page.metadata.continuation

    def watch(self, kind: Kind[ObjectT], after: str) -> Iterator[Happened[ObjectT]]:
        """Returns when the server has agreed; iterate until it ends it, about a minute.

        :raises HistoryGone: :raises ApiError:
        """
        query = {
            "watch": "true",
            "resourceVersion": after,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(WATCH_S),
        }
        self._watched = self._get(kind.path, query, WATCH_S + READ_TIMEOUT_S)
        return (_happened(kind, line) for line in _lines(self._watched))

    def interrupt(self) -> None:
        """End the watch that another thread waits in."""
        if self._watched is not None:
            with contextlib.suppress(ValueError, RuntimeError, OSError):  # it has ended
                self._watched.shutdown()

    def close(self) -> None:
        if self._watched is not None:
            self._watched.close()
        self._client.rest_client.pool_manager.clear()

    def _get(self, path: str, query: dict[str, str], read_timeout_s: float) -> Any:
        """The answer's body is not read yet."""
        from urllib3 import Timeout
        from urllib3.exceptions import HTTPError

        try:
            response = self._client.rest_client.pool_manager.request(
                "GET",
                self._host + path,
                fields=query,
                headers={"Accept": "application/json", **self._headers},
                timeout=Timeout(connect=CONNECT_TIMEOUT_S, read=read_timeout_s),
                preload_content=False,
            )
            if response.status == _OK:
                return response
            body = response.read()
        except (HTTPError, OSError) as error:
            raise ApiError(f"{path}: {error}") from error
        kind = HistoryGone if response.status == _GONE else ApiError
        raise kind(f"{path}: status {response.status}: {_message(body)}")


def _message(body: bytes) -> str:
    try:
        return msgspec.json.decode(body, type=_Status).message
    except msgspec.DecodeError:
        return ""


def _body(response: Any) -> bytes:
    from urllib3.exceptions import HTTPError

    try:
        body: bytes = response.read()
    except (HTTPError, OSError) as error:
        raise ApiError(f"list: {error}") from error
    return body


def _lines(response: Any) -> Iterator[bytes]:
    from urllib3.exceptions import HTTPError

    pending = b""
    try:
        for chunk in response.stream(amt=None, decode_content=False):
            *whole, pending = (pending + chunk).split(b"\n")
            yield from (line for line in whole if line.strip())
    except (HTTPError, OSError) as error:
        raise ApiError(f"watch: {error}") from error


def _happened(kind: Kind[ObjectT], line: bytes) -> Happened[ObjectT]:
    try:
        event = msgspec.json.decode(line, type=_Event)
        if event.type == "ERROR":
            status = msgspec.json.decode(event.object, type=_Status)
            raise (HistoryGone if status.code == _GONE else ApiError)(f"watch of {kind.name}: {status.message}")
        item = msgspec.json.decode(event.object, type=kind.item)
    except msgspec.DecodeError as error:
        raise ApiError(f"watch of {kind.name}: {error}") from error
    if event.type == "BOOKMARK":
        return Happened("bookmark", item)
    return Happened("deleted" if event.type == "DELETED" else "put", item)


def _client(kubeconfig: str) -> tuple[Any, str, dict[str, str]]:
    """A client, the server's address and the headers that say who we are."""
    import yaml
    from kubernetes import client, config

    settings = client.Configuration()
    try:
        if kubeconfig == IN_CLUSTER:
            config.load_incluster_config(client_configuration=settings)
        else:
            config.load_kube_config(config_file=kubeconfig, client_configuration=settings, persist_config=False)
    except yaml.MarkedYAMLError as error:
        line = f" at line {error.problem_mark.line + 1}" if error.problem_mark is not None else ""
        raise InvalidSettings("kubeconfig", kubeconfig, f"is not YAML{line}") from None  # its text may be a secret
    except (yaml.YAMLError, config.ConfigException, OSError, ValueError, TypeError, KeyError) as error:
        raise InvalidSettings("kubeconfig", kubeconfig, str(error)) from error
    settings.retries = False  # who calls us tries again, with what is right then
    headers = {each["key"]: each["value"] for each in settings.auth_settings().values() if each.get("in") == "header"}
    return client.ApiClient(settings), settings.host, headers
