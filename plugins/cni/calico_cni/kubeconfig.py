"""How to reach the Kubernetes API: from a kubeconfig, or from the keys that old network configurations carry.

A file is read again when it has changed, so that a token which was renewed is used from the next call on. What cannot
be used is refused with the name of the key; neither tokens nor keys are ever logged or part of an error.
"""

from __future__ import annotations

import base64
import contextlib
import os
import ssl
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import msgspec

from calico_cni.wire import NetworkConfiguration
from calico_core.errors import InvalidRequest

_FIELD = "kubernetes.kubeconfig"
_PORTS = {"http": 80, "https": 443}

_File = tuple[str, int, int, int]
"""Path, inode, size and time of change of a file that credentials come from, from before it was read: what takes its
place meanwhile is noticed with the next call."""


class Access(NamedTuple):
    """``prefix`` of every path, without a slash at its end; ``context`` None: no TLS. ``server_name``: which the
    server's certificate must have, the host's where it is empty."""

    host: str
    port: int
    prefix: str
    context: ssl.SSLContext | None
    token: str
    server_name: str = ""

    @property
    def headers(self) -> dict[str, str]:
        found = {"Accept": "application/json", "Host": f"{self.host}:{self.port}"}
        return found | ({"Authorization": f"Bearer {self.token}"} if self.token else {})


class Source(NamedTuple):
    """Where a network configuration says that the API is."""

    kubeconfig: str = ""
    api_root: str = ""
    token: str = ""
    client_certificate: str = ""
    client_key: str = ""
    certificate_authority: str = ""

    @classmethod
    def of(cls, configuration: NetworkConfiguration, *, reason: str = "is required with policy.type k8s") -> Source:
        """:raises InvalidRequest: it does not say."""
        kubernetes, policy = configuration.kubernetes, configuration.policy
        api_root = kubernetes.k8s_api_root or policy.k8s_api_root
        if not kubernetes.kubeconfig and not api_root:
            raise InvalidRequest(_FIELD, reason)
        return cls(
            kubernetes.kubeconfig,
            api_root,
            policy.k8s_auth_token,
            policy.k8s_client_certificate,
            policy.k8s_client_key,
            policy.k8s_certificate_authority,
        )

    def __repr__(self) -> str:
        """Without secrets."""
        return f"Source({self.kubeconfig or self.api_root})"


class _Wire(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """A part of a kubeconfig; keys we have no use for are ignored."""


class _Cluster(_Wire, frozen=True):
    """``proxy_url`` is known, to be refused."""

    server: str = ""
    tls_server_name: str = ""
    proxy_url: Any = None
    certificate_authority: str = ""
    certificate_authority_data: str = ""
    insecure_skip_tls_verify: bool = False


class _User(_Wire, frozen=True):
    """``program`` and ``provider`` are what runs elsewhere for a token; these, a password and to act as somebody else
    are known, to be refused."""

    program: Any = msgspec.field(default=None, name="exec")
    provider: Any = msgspec.field(default=None, name="auth-provider")
    username: Any = None
    acts_as: Any = msgspec.field(default=None, name="as")
    acts_as_uid: Any = msgspec.field(default=None, name="as-uid")
    acts_in_groups: Any = msgspec.field(default=None, name="as-groups")
    token: str = ""
    token_file: str = msgspec.field(default="", name="tokenFile")
    client_certificate: str = ""
    client_certificate_data: str = ""
    client_key: str = ""
    client_key_data: str = ""


class _Context(_Wire, frozen=True):
    cluster: str = ""
    user: str = ""


class _NamedCluster(_Wire, frozen=True):
    name: str
    cluster: _Cluster = _Cluster()


class _NamedUser(_Wire, frozen=True):
    name: str
    user: _User = _User()


class _NamedContext(_Wire, frozen=True):
    name: str
    context: _Context = _Context()


class _Kubeconfig(_Wire, frozen=True):
    current_context: str = ""
    clusters: tuple[_NamedCluster, ...] = ()
    users: tuple[_NamedUser, ...] = ()
    contexts: tuple[_NamedContext, ...] = ()


class AccessReader:
    """The access that a source gives now. Any thread: two that read at once read the same."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._held: tuple[list[_File], Access] | None = None

    def read(self) -> Access:
        """The same object while no file has changed.

        :raises InvalidRequest: a file is missing or cannot be used.
        """
        held = self._held
        if held is not None and held[0] == [_seen(each[0]) for each in held[0]]:
            return held[1]
        files: list[_File] = []
        access = self._read(files)
        self._held = (files, access)
        return access

    def _read(self, files: list[_File]) -> Access:
        source = self._source
        cluster, user = (_Cluster(), _User(token=source.token))
        if source.kubeconfig:
            cluster, user = _load(source.kubeconfig, files)
        cluster = msgspec.structs.replace(
            cluster,
            server=source.api_root or cluster.server,
            certificate_authority=source.certificate_authority or cluster.certificate_authority,
        )
        if source.client_certificate:
            user = msgspec.structs.replace(
                user, client_certificate=source.client_certificate, client_key=source.client_key
            )
        return _access(cluster, user, files)


def _load(path: str, files: list[_File]) -> tuple[_Cluster, _User]:
    config = _parse(path, _text(path, _FIELD, files))
    context = next((each.context for each in config.contexts if each.name == config.current_context), None)
    if context is None:
        raise InvalidRequest(_FIELD, f"{path}: there is no context {config.current_context!r}")
    cluster = next((each.cluster for each in config.clusters if each.name == context.cluster), None)
    user = next((each.user for each in config.users if each.name == context.user), _User())
    if cluster is None:
        raise InvalidRequest(_FIELD, f"{path}: there is no cluster {context.cluster!r}")
    folder = Path(path).parent  # where relative names begin
    return (
        _beside(folder, cluster, ("certificate_authority",)),
        _beside(folder, user, ("token_file", "client_certificate", "client_key")),
    )


def _parse(path: str, text: str) -> _Kubeconfig:
    """Every JSON document is YAML."""
    try:
        import yaml
    except ImportError as error:
        raise InvalidRequest(_FIELD, f"{path}: to read YAML, install calico-containers[kubernetes]") from error
    try:
        document: Any = yaml.safe_load(text)
        return msgspec.convert(document, _Kubeconfig)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)  # the text itself may be a secret
        line = f" at line {mark.line + 1}" if mark is not None else ""
        raise InvalidRequest(_FIELD, f"{path}: is not YAML{line}") from None
    except msgspec.ValidationError as error:
        raise InvalidRequest(_FIELD, f"{path}: {error}") from error


def _beside(folder: Path, part: Any, names: tuple[str, ...]) -> Any:
    found = {name: str(folder / getattr(part, name)) for name in names if getattr(part, name)}
    return msgspec.structs.replace(part, **found)


def _access(cluster: _Cluster, user: _User, files: list[_File]) -> Access:
    try:
        parts = urlsplit(cluster.server if "://" in cluster.server else f"https://{cluster.server}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise InvalidRequest("kubernetes.k8s_api_root", f"{cluster.server!r}: {error}") from error
    if parts.scheme not in _PORTS or not host:
        raise InvalidRequest("kubernetes.k8s_api_root", f"{cluster.server!r} is not the address of a server")
    _check_supported(cluster, user)
    token = _text(user.token_file, "tokenFile", files).strip() if user.token_file else user.token
    if "\n" in token or "\r" in token:
        raise InvalidRequest("token", "holds more than one line")
    if not token.isascii() or not token.isprintable():
        raise InvalidRequest("token", "holds a character that no token has: only printable ASCII can be sent")
    return Access(
        host,
        port or _PORTS[parts.scheme],
        parts.path.partition("/api/")[0].rstrip("/").removesuffix("/api"),
        _tls(cluster, user, files) if parts.scheme == "https" else None,
        token,
        cluster.tls_server_name,
    )


def _check_supported(cluster: _Cluster, user: _User) -> None:
    """What would be left out silently otherwise: the API would be asked another way, or as somebody else."""
    if cluster.proxy_url:
        raise InvalidRequest("cluster.proxy-url", "is not supported: the API must be reached from the node itself")
    for given, key in ((user.acts_as, "as"), (user.acts_as_uid, "as-uid"), (user.acts_in_groups, "as-groups")):
        if given:
            raise InvalidRequest(f"user.{key}", "is not supported: give the rights to the user itself")
    if user.token or user.token_file or user.client_certificate or user.client_certificate_data:
        return
    for given, key in ((user.program, "exec"), (user.provider, "auth-provider"), (user.username, "username")):
        if given is not None:
            reason = "is not supported: give the user a token, a tokenFile or a client-certificate"
            raise InvalidRequest(f"user.{key}", reason)


def _tls(cluster: _Cluster, user: _User, files: list[_File]) -> ssl.SSLContext:
    authority = _decoded(cluster.certificate_authority_data, "certificate-authority-data")
    if not authority and cluster.certificate_authority:
        authority = _pem(cluster.certificate_authority, "certificate-authority", files)
    try:
        context = ssl.create_default_context(cadata=authority or None)  # a cluster's own is the only one that counts
        if cluster.insecure_skip_tls_verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        certificate = _decoded(user.client_certificate_data, "client-certificate-data")
        key = _decoded(user.client_key_data, "client-key-data")
        if not certificate and user.client_certificate:
            certificate = _pem(user.client_certificate, "client-certificate", files)
        if not key and user.client_key:
            key = _pem(user.client_key, "client-key", files)
        if certificate:
            with _private_file(f"{certificate}\n{key}") as path:
                context.load_cert_chain(path)
    except ssl.SSLError as error:
        raise InvalidRequest(_FIELD, f"certificates or key cannot be used: {error.reason}") from error
    return context


def _decoded(data: str, field: str) -> str:
    try:
        return _ascii(base64.b64decode(data, validate=True))
    except ValueError:  # of base64, or of what is not ASCII
        raise InvalidRequest(field, "is not base64 of a PEM text") from None


@contextlib.contextmanager
def _private_file(text: str) -> Iterator[str]:
    """OpenSSL takes a key from a file only."""
    descriptor, path = tempfile.mkstemp()
    try:
        with open(descriptor, "w") as file:
            file.write(text)
        yield path
    finally:
        os.unlink(path)  # noqa: PTH108 - as mkstemp gave it


def _text(path: str, field: str, files: list[_File]) -> str:
    try:
        return _bytes(path, field, files).decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(field, f"{path}: is not text") from error


def _pem(path: str, field: str, files: list[_File]) -> str:
    return _ascii(_bytes(path, field, files))


def _ascii(pem: bytes) -> str:
    """Anything else stands in comments, which may be in any language and encoding."""
    return pem.decode("ascii", "ignore")


def _bytes(path: str, field: str, files: list[_File]) -> bytes:
    files.append(_seen(path))
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InvalidRequest(field, f"{path}: {error.strerror}") from error


def _seen(path: str) -> _File:
    try:
        status = os.stat(path)  # noqa: PTH116 - a few a call
    except OSError:
        return path, 0, 0, 0
    return path, status.st_ino, status.st_size, status.st_mtime_ns
