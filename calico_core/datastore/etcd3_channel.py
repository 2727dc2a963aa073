"""Connections to the members of an etcd cluster: one call to whichever answers, and errors in our words.

The SDK's own client is not used above its stubs and endpoints: its failover keeps a failed member aside for five
minutes and tells neither which endpoint failed nor whether a write may have landed.
"""

from __future__ import annotations

import os
import random
import re
import ssl
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from calico_core.datastore import tls_verdict
from calico_core.errors import InvalidSettings, Unavailable
from calico_core.log import get_logger

# Before grpc is imported: its C core writes its own view of every refused connection to stderr.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc
from pyetcd import Endpoint, etcdrpc

if TYPE_CHECKING:
    from collections.abc import Callable

    from calico_core.interfaces.datastore import DatastoreOptions

log = get_logger(__name__)

_GRPC_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 2000),  # which is how long one attempt to connect may take
    ("grpc.max_reconnect_backoff_ms", 2000),
    # A member that went away without a word is noticed after 15 s; etcd tolerates a ping every 5 s.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)
_NOT_SENT = ("failed to connect to all addresses", "connections to all backends failing", "Name resolution")
_GRPC_PREAMBLE = re.compile(r"failed to connect to all addresses; last error: \w+: (?:ipv4|ipv6|unix):\S+: ")
_UNTRUSTED = re.compile(r"CERTIFICATE_VERIFY_FAILED: (?P<why>[^:]+)")
_ALERT = "TSI_DATA_CORRUPTED"
"""What is left of a TLS alert: in TLS 1.3 a server judges a client's certificate after the client's handshake ended."""
SHORT_PATIENCE_S = 1.0
"""What a call may take while the store is known to be silent: a caller that makes several must not wait the full time
for each. It ends with the first answer, or by itself after twice the full time, in case the store is only slow."""
_STALE_TOKEN = ("invalid auth token", "auth revision")


class Address(NamedTuple):
    host: str  # with brackets for IPv6
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class Member:
    """One endpoint with its stubs. Calls on it are thread-safe, as gRPC channels are."""

    def __init__(self, address: Address, credentials: Any) -> None:
        self.name = str(address)
        self._endpoint = Endpoint(
            address.host, address.port, secure=credentials is not None, creds=credentials, opts=_GRPC_OPTIONS
        )
        channel = self._endpoint.channel
        self.kv = etcdrpc.KVStub(channel)
        self.lease = etcdrpc.LeaseStub(channel)
        self.watch = etcdrpc.WatchStub(channel)
        self.auth = etcdrpc.AuthStub(channel)

    def close(self) -> None:
        self._endpoint.close()


class Cluster:
    """The members in random order, so that a returning cluster is not stampeded; the one in use stays until it
    fails. TLS files are read again when a connection fails after they changed, so rotation needs no restart."""

    def __init__(self, addresses: tuple[Address, ...], options: DatastoreOptions, *, secure: bool) -> None:
        self._addresses = random.sample(addresses, len(addresses))
        self._options, self._secure = options, secure
        self._ca_file = options.ca_file or (_trusted_by_host() if secure else "")
        self._files = self._read_files()
        self._members = self._make_members()
        self._retired: list[Member] = []
        self._current = 0
        self._lock = threading.Lock()
        self._token = ""
        self._silent_until = float("-inf")
        self._closed = False

    @property
    def name(self) -> str:
        return ",".join(map(str, self._addresses))

    @property
    def current(self) -> Member:
        return self._members[self._current]

    def call(self, run: Callable[[Member, float, Any], Any], *, is_write: bool) -> Any:
        """``run(member, timeout_s, metadata)`` on a member that answers.

        A read goes on to the next member after any failure of a connection, and so waits for one no longer than its
        share of the time. A write goes on only when it was certainly not sent, and may wait for all of it: an election
        takes a second or two. Raises ``Unavailable``; other gRPC errors, which mean that etcd answered, pass.
        """
        deadline = time.monotonic() + self._patience_s()
        tries_left = len(self._members)
        is_renewed = False
        while True:
            if self._closed:
                raise Unavailable(self.name, "closed")
            member = self.current
            remaining = deadline - time.monotonic()
            allowed = remaining if is_write else remaining / max(tries_left, 1)
            try:
                answer = run(member, max(allowed, 0.05), self.metadata(member))
            except grpc.RpcError as error:
                if not is_renewed and self._token and any(text in (error.details() or "") for text in _STALE_TOKEN):
                    is_renewed, self._token = True, ""
                    continue
                tries_left -= 1
                if not is_connection_failure(error):
                    raise
                cause = self._explain(error)
                self.fail(member, cause)
                maybe_applied = is_write and not _was_not_sent(error)
                if maybe_applied or tries_left <= 0 or deadline - time.monotonic() <= 0:
                    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED and not self._is_silent():
                        self._silent_until = time.monotonic() + 2 * self._options.timeout_s
                    raise Unavailable(member.name, cause, maybe_applied=maybe_applied) from error
            except ValueError as error:  # what gRPC says of a closed channel
                if self._closed or member is self.current:
                    raise Unavailable(member.name, str(error)) from error
            else:
                self._silent_until = float("-inf")
                return answer

    def _is_silent(self) -> bool:
        return time.monotonic() < self._silent_until

    def _patience_s(self) -> float:
        return min(self._options.timeout_s, SHORT_PATIENCE_S) if self._is_silent() else self._options.timeout_s

    def metadata(self, member: Member) -> tuple[tuple[str, str], ...] | None:
        """What every call carries. Logs in first when there is a user."""
        if not self._options.username:
            return None
        if not self._token:
            request = etcdrpc.AuthenticateRequest(name=self._options.username, password=self._options.password)
            self._token = member.auth.Authenticate(request, self._options.timeout_s).token
        return (("token", self._token),)

    def fail(self, member: Member, cause: str) -> None:
        """``member`` did not answer: use the next one."""
        with self._lock:
            if member is not self.current or self._closed:
                return
            log.warning("datastore.endpoint-failed", endpoint=member.name, cause=cause)
            self._current = (self._current + 1) % len(self._members)
            self._reload_files()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            for member in [*self._members, *self._retired]:
                member.close()

    # --- TLS -----------------------------------------------------------------------------------------------

    def _explain(self, error: grpc.RpcError) -> str:
        """:func:`describe`, with what our own files say about a handshake that failed."""
        details, options = error.details() or "", self._options
        if not self._secure and _was_not_sent(error) and "Socket closed" in details:
            return "the server closed the connection at once; does it want TLS (etcd3s://)?"
        if not self._secure or _ALERT not in details:
            return describe(error)
        if not options.cert_file:
            return "TLS: the server wants a client certificate, and no cert_file is set"
        verdict = tls_verdict.judge(options.ca_file, options.cert_file, options.key_file)
        return f"TLS: the server refused our certificate {options.cert_file}" + (f": {verdict}" if verdict else "")

    def _make_members(self) -> list[Member]:
        credentials = None
        if self._secure:
            ca, cert, key = self._files
            credentials = grpc.ssl_channel_credentials(ca or None, key or None, cert or None)
        return [Member(address, credentials) for address in self._addresses]

    def _read_files(self) -> tuple[bytes, bytes, bytes]:
        options = self._options
        if bool(options.cert_file) != bool(options.key_file):
            missing = "key_file" if options.cert_file else "cert_file"
            raise InvalidSettings(missing, "options", "a client certificate and its key are given together")
        return (
            _read_file("ca_file", self._ca_file),
            _read_file("cert_file", options.cert_file),
            _read_file("key_file", options.key_file),
        )

    def _reload_files(self) -> None:
        if not self._secure:
            return
        try:
            files = self._read_files()
        except InvalidSettings as error:  # half-way through a rotation
            log.warning("datastore.tls-file-unreadable", name=error.name, reason=error.reason)
            return
        if files != self._files:
            # Calls may still run on the old channels; they are closed at the end.
            self._retired += self._members
            self._files = files
            self._members = self._make_members()


def is_connection_failure(error: grpc.RpcError) -> bool:
    return error.code() in {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.UNKNOWN,
    }


def describe(error: grpc.RpcError) -> str:
    """The cause in a few words, for people."""
    details = _GRPC_PREAMBLE.sub("", error.details() or "")
    untrusted = _UNTRUSTED.search(details)
    if untrusted is not None:
        return f"TLS: the server's certificate is not accepted: {untrusted['why'].strip()}"
    lowered = details.lower()
    if "hostname verification" in lowered:
        return "TLS: the server's certificate is for another name"
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED or "timed out" in lowered:
        return "timeout: no answer in time"
    if "connection refused" in lowered:
        return "connection refused"
    if any(word in lowered for word in ("ssl", "tls", "tsi_", "handshake", "certificate")):
        return f"TLS: {details}"
    if error.code() in {grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED}:
        return f"permission denied: {details}"
    if "authentication failed" in lowered or "user name is empty" in lowered:
        return f"permission denied: {details}"
    return details or error.code().name.lower()


def _was_not_sent(error: grpc.RpcError) -> bool:
    return any(text in (error.details() or "") for text in _NOT_SENT)


def _trusted_by_host() -> str:
    """The file of the authorities that the host trusts; '': gRPC has a list of its own."""
    candidates = (ssl.get_default_verify_paths().cafile, "/etc/ssl/certs/ca-certificates.crt")
    return next((each for each in candidates if each and Path(each).exists()), "")


def _read_file(name: str, path: str) -> bytes:
    if not path:
        return b""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise InvalidSettings(name, "options", f"{path} cannot be read: {error.strerror}") from error
