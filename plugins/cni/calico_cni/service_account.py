"""The kubeconfig that network lists name, made of a pod's service account and kept current by the node.

A token is good for an hour or so, and the kubelet puts a new one where the pod finds it. What is written here is read
by whoever runs a call; the resident node re-reads it when it changes. No token is logged or part of an error.
Source: cni specification 7.2.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import stat
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec
from netaddr import AddrFormatError, IPAddress

from calico_cni.placed_files import write_file
from calico_core.errors import CalicoError, InvalidRequest
from calico_core.log import get_logger

FILE_NAME = "calico-kubeconfig"
ACCOUNT_DIRECTORY = Path("/var/run/secrets/kubernetes.io/serviceaccount")
MODE = "0600"

_MARK = "# Written by calicoctl cni install. The node changes it when its token changes.\n"
_TOKEN = re.compile(r'(?m)^    token: (".*")$')
_AUTHORITY = re.compile(r'(?m)^    certificate-authority-data: (".*")$')
_TRUE = frozenset({"true", "yes", "1"})
_FALSE = frozenset({"", "false", "no", "0"})
_MODE = re.compile(r"0?[0-7]{3}")

log = get_logger(__name__)


class Credentials(NamedTuple):
    """``age_s``: since the file was written. ``left_s``: until the token is refused; None when it does not say."""

    age_s: float
    left_s: float | None

    @property
    def is_expired(self) -> bool:
        return self.left_s is not None and self.left_s <= 0


class _Claims(msgspec.Struct, frozen=True):
    exp: float | None = None


def has_account(directory: Path) -> bool:
    return (directory / "token").is_file()


def kubeconfig_text(environment: Mapping[str, str], directory: Path) -> bytes:
    """:raises InvalidRequest: naming the variable or the file."""
    return (
        f"{_MARK}apiVersion: v1\nkind: Config\nclusters:\n- name: local\n  cluster:\n"
        f"    server: {json.dumps(server_address(environment))}\n{_trust(environment, directory)}"
        f"users:\n- name: calico\n  user:\n    token: {json.dumps(_token(directory))}\n"
        "contexts:\n- name: calico\n  context:\n    cluster: local\n    user: calico\ncurrent-context: calico\n"
    ).encode()


def is_insecure(environment: Mapping[str, str]) -> bool:
    """Whether whoever answers at the API's address is believed."""
    value = environment.get("SKIP_TLS_VERIFY", "").strip().lower()
    if value not in _TRUE | _FALSE:
        raise InvalidRequest("SKIP_TLS_VERIFY", f"{value!r} is neither true nor false")
    return value in _TRUE


def file_mode(text: str) -> int:
    if not _MODE.fullmatch(text):
        raise InvalidRequest("KUBECONFIG_MODE", f"{text!r} is not a mode such as {MODE}")
    return int(text, 8)


def refresh(path: Path, directory: Path, token: str | None = None) -> bool:
    """Put the account's token (or the one given) and authority of now into a file of ours. Whether it had to be; a file
    that is missing or somebody else's stays so."""
    try:
        text = path.read_text()
        mode = stat.S_IMODE(path.stat().st_mode)
    except FileNotFoundError:
        return False
    if not text.startswith(_MARK):
        return False
    current = _TOKEN.sub(lambda _: f"    token: {json.dumps(token or _token(directory))}", text)
    authority = directory / "ca.crt"
    if authority.is_file():
        current = _AUTHORITY.sub(lambda _: f"    certificate-authority-data: {_encoded(authority)}", current)
    return write_file(path, current.encode(), mode)


def credentials_in(path: Path, *, now: float | None = None) -> Credentials | None:
    """Of a file of ours; None when there is none."""
    try:
        text = path.read_text()
        written = path.stat().st_mtime
    except (OSError, UnicodeDecodeError):
        return None
    if not text.startswith(_MARK):
        return None
    now = time.time() if now is None else now
    found = _TOKEN.search(text)
    end = _expiry(json.loads(found[1])) if found else None
    return Credentials(max(0.0, now - written), None if end is None else end - now)


class Tokens(Protocol):
    """Where tokens come from that are not the account's own. ``is_due``: :meth:`token` may give another one now."""

    @property
    def is_due(self) -> bool: ...

    def token(self) -> str: ...


class Refresher:
    """Keeps one file current, with the account's own token or those of ``tokens``. One thread; a turn costs two looks
    at the file system."""

    def __init__(self, path: Path, directory: Path | None = None, tokens: Tokens | None = None) -> None:
        self._path = path
        self._directory = directory or ACCOUNT_DIRECTORY
        self._tokens = tokens
        self._seen: tuple[tuple[int, int, int], ...] = ()
        self._reason = ""

    def credentials(self) -> Credentials | None:
        """Those in the file now. Any thread."""
        return credentials_in(self._path)

    def turn(self) -> None:
        """What fails is logged once and tried again."""
        found = self._signatures()
        is_due = self._tokens is not None and self._tokens.is_due
        if found == self._seen and not self._reason and not is_due:
            return
        try:
            if self._refresh():
                log.info("kubeconfig.refreshed", path=str(self._path))
            self._reason = ""
        except (CalicoError, OSError, UnicodeDecodeError) as error:
            reason = error.strerror or "" if isinstance(error, OSError) else str(error)
            if reason != self._reason:
                log.warning("kubeconfig.not_refreshed", path=str(self._path), reason=reason)
            self._reason = reason
        # a token that came while the one before was written down is for the next turn
        self._seen = (_signature(self._path), *found[1:])

    def _refresh(self) -> bool:
        if self._tokens is not None:
            return refresh(self._path, self._directory, self._tokens.token())
        return has_account(self._directory) and refresh(self._path, self._directory)

    def _signatures(self) -> tuple[tuple[int, int, int], ...]:
        return tuple(_signature(each) for each in (self._path, self._directory / "token", self._directory / "ca.crt"))


def server_address(environment: Mapping[str, str]) -> str:
    """Of the API, as a pod is told. :raises InvalidRequest: naming the variable."""
    host, port = (environment.get(f"KUBERNETES_SERVICE_{each}", "").strip() for each in ("HOST", "PORT"))
    for variable, value in (("KUBERNETES_SERVICE_HOST", host), ("KUBERNETES_SERVICE_PORT", port)):
        if not value:
            raise InvalidRequest(variable, "is not set, and the kubeconfig needs it")
    if not port.isascii() or not port.isdecimal() or not 0 < int(port) < 65536:
        raise InvalidRequest("KUBERNETES_SERVICE_PORT", f"{port!r} is not a port")
    scheme = environment.get("KUBERNETES_SERVICE_PROTOCOL", "") or "https"
    if scheme not in {"http", "https"}:
        raise InvalidRequest("KUBERNETES_SERVICE_PROTOCOL", f"{scheme!r} is neither http nor https")
    return f"{scheme}://{f'[{host}]' if _is_ipv6(host) else host}:{port}"


def _is_ipv6(host: str) -> bool:
    try:
        return bool(IPAddress(host).version == 6)
    except (AddrFormatError, ValueError):
        return False


def _trust(environment: Mapping[str, str], directory: Path) -> str:
    if is_insecure(environment):
        return "    insecure-skip-tls-verify: true\n"
    named = environment.get("KUBE_CA_FILE", "")
    path = Path(named) if named else directory / "ca.crt"
    if not path.is_file():
        raise InvalidRequest("KUBE_CA_FILE", f"{path} is missing: nothing else tells the API from another server")
    return f"    certificate-authority-data: {_encoded(path)}\n"


def _encoded(path: Path) -> str:
    return json.dumps(base64.b64encode(path.read_bytes()).decode())


def _token(directory: Path) -> str:
    token = (directory / "token").read_text().strip()
    if not token or not token.isprintable():
        raise InvalidRequest("token", f"{directory / 'token'} does not hold a token in one line")
    return token


def _expiry(token: str) -> float | None:
    """``exp`` of a signed token (RFC 7519), unverified: only to say how old it is."""
    parts = token.split(".")
    if len(parts) != 3:
        return None
    try:
        payload = base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4))
        return msgspec.json.decode(payload, type=_Claims).exp
    except (binascii.Error, ValueError, msgspec.DecodeError):
        return None


def _signature(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except OSError:
        return (0, 0, 0)
    return (found.st_ino, found.st_size, found.st_mtime_ns)
