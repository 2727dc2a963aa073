"""The store of a cluster: etcd 3 over gRPC. Every operation is one round trip; a long list is one per page.

``etcd3://h1:2379,h2:2379`` speaks plaintext, ``etcd3s://…`` TLS, as does ``etcd3://`` with a ``ca_file`` or a
``cert_file``. Mapping: datastore specification, section 8.
"""

from __future__ import annotations

import math
import re
import threading
from typing import TYPE_CHECKING, Any

from calico_core.datastore.checks import check_transaction, prefix_end
from calico_core.datastore.etcd3_channel import Address, Cluster, Member, describe
from calico_core.datastore.etcd3_watch import ASK_PROGRESS_AFTER_S, WatchStream
from calico_core.errors import InvalidSettings, KeyMissing, Unavailable
from calico_core.interfaces.datastore import (
    Compare,
    Datastore,
    Entry,
    Lease,
    Put,
    Snapshot,
    TransactionResult,
)

import grpc  # isort: skip - after etcd3_channel, which quietens it
from pyetcd import etcdrpc  # isort: skip

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from calico_core.interfaces.datastore import DatastoreOptions, Operation, Precondition, Watch

PAGE_ENTRIES = 1000
_URL = re.compile(r"(?P<scheme>etcd3s?)://(?P<members>[^/?#@]+)/?")
_MEMBER = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%]+\]|[^\[\]:,]+)(?::(?P<port>[0-9]{1,5}))?")
_DEFAULT_PORT = 2379


class Etcd3Datastore(Datastore):
    """A handle on a cluster, for any number of threads."""

    def __init__(self, cluster: Cluster, *, ask_progress_after_s: float = ASK_PROGRESS_AFTER_S) -> None:
        self._cluster, self._ask_progress_after_s = cluster, ask_progress_after_s
        self._stream: WatchStream | None = None
        self._stream_lock = threading.Lock()
        self._closed = False

    @classmethod
    def open(cls, url: str, options: DatastoreOptions) -> Etcd3Datastore:
        addresses, secure = _parse(url)
        return cls(Cluster(addresses, options, secure=secure or bool(options.ca_file or options.cert_file)))

    def get(self, key: str) -> Entry | None:
        request = etcdrpc.RangeRequest(key=key.encode())
        answer = self._read(lambda m, t, md: m.kv.Range(request, t, metadata=md))
        return _entry(answer.kvs[0]) if answer.kvs else None

    def list(self, prefix: str) -> Snapshot:
        end = prefix_end(prefix)
        while True:
            snapshot = self._list_pages(prefix.encode(), end.encode())
            if snapshot is not None:
                return snapshot

    def transact(
        self,
        preconditions: Sequence[Precondition],
        operations: Sequence[Operation],
        otherwise: Sequence[str] = (),
    ) -> TransactionResult:
        check_transaction(preconditions, operations, otherwise)
        request = etcdrpc.TxnRequest(
            compare=[_compare(condition) for condition in preconditions],
            success=[_operation(operation) for operation in operations],
            failure=[etcdrpc.RequestOp(request_range=etcdrpc.RangeRequest(key=key.encode())) for key in otherwise],
        )
        answer = self._write(lambda m, t, md: m.kv.Txn(request, t, metadata=md))
        if answer.succeeded:
            return TransactionResult(committed=True, revision=answer.header.revision)
        found = (response.response_range.kvs for response in answer.responses)
        return TransactionResult(
            committed=False,
            revision=answer.header.revision,
            current=tuple(_entry(kvs[0]) if kvs else None for kvs in found),
        )

    def lease(self, ttl_s: float) -> Lease:
        """etcd counts whole seconds, and grants no less than its election timeout allows (about 2 s)."""
        request = etcdrpc.LeaseGrantRequest(TTL=max(math.ceil(ttl_s), 1))
        answer = self._write(lambda m, t, md: m.lease.LeaseGrant(request, t, metadata=md))
        return _Etcd3Lease(self, answer.ID, float(answer.TTL))

    def watch(self, prefix: str, after: int) -> Watch:
        prefix_end(prefix)
        for _ in range(3):
            watch = self._running_stream().watch(prefix, after)
            if watch is not None:
                return watch
        raise Unavailable(self._cluster.current.name, "watch streams end as soon as they begin")

    def delete(self, key: str, *, mod_revision: int | None = None) -> bool:
        if mod_revision is not None:
            return super().delete(key, mod_revision=mod_revision)
        request = etcdrpc.DeleteRangeRequest(key=key.encode())
        return bool(self._write(lambda m, t, md: m.kv.DeleteRange(request, t, metadata=md)).deleted)

    def delete_prefix(self, prefix: str) -> int:
        request = etcdrpc.DeleteRangeRequest(key=prefix.encode(), range_end=prefix_end(prefix).encode())
        answer = self._write(lambda m, t, md: m.kv.DeleteRange(request, t, metadata=md))
        return int(answer.deleted)

    def identity(self) -> str:
        request = etcdrpc.RangeRequest(key=b"/calico/v1/Ready", count_only=True)
        answer = self._read(lambda m, t, md: m.kv.Range(request, t, metadata=md))
        return f"{answer.header.cluster_id:x}"

    def close(self) -> None:
        with self._stream_lock:
            if self._closed:
                return
            self._closed = True
            stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()
        self._cluster.close()

    def compact(self, revision: int) -> None:
        """Forget the history up to ``revision``, for the whole cluster."""
        request = etcdrpc.CompactionRequest(revision=revision, physical=True)
        self._write(lambda m, t, md: m.kv.Compact(request, t, metadata=md))

    # --- inside --------------------------------------------------------------------------------------------

    def _read(self, run: Callable[[Member, float, Any], Any]) -> Any:
        try:
            return self._cluster.call(run, is_write=False)
        except grpc.RpcError as error:
            raise self._refused(error) from error

    def _write(self, run: Callable[[Member, float, Any], Any]) -> Any:
        try:
            return self._cluster.call(run, is_write=True)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND and "lease not found" in (error.details() or ""):
                raise KeyMissing("lease") from error
            raise self._refused(error) from error

    def _refused(self, error: grpc.RpcError) -> Unavailable:
        """etcd answered, and will not do it: nothing was applied."""
        return Unavailable(self._cluster.current.name, describe(error))

    def _list_pages(self, start: bytes, end: bytes) -> Snapshot | None:
        """None when compaction overtook the listing: start over."""
        entries: list[Entry] = []
        revision = 0
        while True:
            request = etcdrpc.RangeRequest(key=start, range_end=end, limit=PAGE_ENTRIES, revision=revision)
            try:
                answer = self._page(request)
            except grpc.RpcError as error:
                if error.code() is grpc.StatusCode.OUT_OF_RANGE and revision:
                    return None
                raise self._refused(error) from error
            revision = revision or answer.header.revision
            entries += map(_entry, answer.kvs)
            if not answer.more:
                return Snapshot(tuple(entries), revision)
            start = answer.kvs[-1].key + b"\0"

    def _page(self, request: Any) -> Any:
        return self._cluster.call(lambda m, t, md: m.kv.Range(request, t, metadata=md), is_write=False)

    def _running_stream(self) -> WatchStream:
        with self._stream_lock:
            if self._closed:
                raise Unavailable(self._cluster.name, "closed")
            if self._stream is None or self._stream.is_broken:
                member, metadata = self._reachable_member()
                self._stream = WatchStream(member, metadata, self._cluster.fail, idle_s=self._ask_progress_after_s)
            return self._stream

    def _reachable_member(self) -> tuple[Member, Any]:
        """Who answers now: a stream to a dead member would only say so later."""
        request = etcdrpc.RangeRequest(key=b"/calico/v1/Ready", count_only=True, serializable=True)

        def run(member: Member, timeout_s: float, metadata: Any) -> tuple[Member, Any]:
            member.kv.Range(request, timeout_s, metadata=metadata)
            return member, metadata

        member, metadata = self._read(run)
        return member, metadata

    def _keep_alive(self, lease: int) -> bool:
        request = etcdrpc.LeaseKeepAliveRequest(ID=lease)

        def run(member: Member, timeout_s: float, metadata: Any) -> int:
            for answer in member.lease.LeaseKeepAlive(iter([request]), timeout_s, metadata=metadata):
                return int(answer.TTL)
            return 0

        return bool(self._read(run) > 0)

    def _revoke(self, lease: int) -> None:
        request = etcdrpc.LeaseRevokeRequest(ID=lease)
        try:
            self._write(lambda m, t, md: m.lease.LeaseRevoke(request, t, metadata=md))
        except KeyMissing:
            return


class _Etcd3Lease(Lease):
    def __init__(self, store: Etcd3Datastore, number: int, ttl_s: float) -> None:
        self._store = store
        self.id, self.ttl_s = number, ttl_s

    def keep_alive(self) -> bool:
        return self._store._keep_alive(self.id)  # noqa: SLF001 - halves of one driver

    def revoke(self) -> None:
        self._store._revoke(self.id)  # noqa: SLF001


def _parse(url: str) -> tuple[tuple[Address, ...], bool]:
    """The members, and whether TLS was asked for. Raises ``InvalidSettings``."""
    match = _URL.fullmatch(url)
    if match is None:
        raise InvalidSettings("datastore", "url", f"{url!r} is not of the form etcd3://host:port,host:port")
    addresses = []
    for text in match["members"].split(","):
        member = _MEMBER.fullmatch(text)
        port = int(member["port"] or _DEFAULT_PORT) if member else 0
        if member is None or not 1 <= port <= 65535:
            raise InvalidSettings("datastore", "url", f"{url!r}: {text!r} is not host:port, with a port of 1 to 65535")
        addresses.append(Address(member["host"], port))
    return tuple(addresses), match["scheme"] == "etcd3s"


def _entry(kv: Any) -> Entry:
    # A key that is not UTF-8 is none of ours; it must not keep us from reading its neighbours.
    return Entry(kv.key.decode(errors="replace"), kv.value, kv.create_revision, kv.mod_revision, kv.lease or None)


def _compare(condition: Precondition) -> Any:
    if isinstance(condition, Compare):
        return etcdrpc.Compare(
            key=condition.key.encode(),
            target=etcdrpc.Compare.MOD,
            result=etcdrpc.Compare.EQUAL,
            mod_revision=condition.mod_revision,
        )
    return etcdrpc.Compare(
        key=condition.prefix.encode(),
        range_end=prefix_end(condition.prefix).encode(),
        target=etcdrpc.Compare.MOD,
        result=etcdrpc.Compare.LESS,
        mod_revision=condition.revision + 1,
    )


def _operation(operation: Operation) -> Any:
    if isinstance(operation, Put):
        put = etcdrpc.PutRequest(key=operation.key.encode(), value=operation.value, lease=operation.lease or 0)
        return etcdrpc.RequestOp(request_put=put)
    return etcdrpc.RequestOp(request_delete_range=etcdrpc.DeleteRangeRequest(key=operation.key.encode()))
