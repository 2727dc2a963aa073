"""``nox -s scale -- [--remote N] [--local N] [--policies N] [--rate N] [--seconds S] [--refresh S]``: scenario 64.

One host of the laboratory and a real etcd. What the cluster holds is written while the node is down; its start until it
is ready is timed. Then remote endpoints change, each once and each so that a set in the kernel changes: every other one
gets another address, the others another label, by which they move from set to set. They are written in transactions of
50 ms' worth. The kernel's own notifications (what ``nft monitor`` prints) tell when each of them is there,
so the time is that from just before the write to the kernel, and what is written and not yet there is the queue.

The last line states the figures; the exit code is 1 if an update is missing, if the 99th percentile is not below a
second, if the rate was not kept, if the queue held more than that second's worth, or if memory grew by more than a
quarter.
"""

from __future__ import annotations

import argparse
import base64
import collections
import contextlib
import http.client
import itertools
import json
import multiprocessing
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

from netaddr import IPAddress

from calico_core.dataplane.linux import netns
from calico_core.lab.host import LabHost
from calico_core.lab.topology import Laboratory
from tests.command_line import positive, require_root

_MOST_GROUPS, HOSTS = 100, 1000
P99_S, MEMORY_GROWTH, RATE_KEPT = 1.0, 1.25, 0.95
_TICK_S, _LAST_WAIT_S, _START_WITHIN_S = 0.05, 30.0, 300.0
_OPERATIONS, _WRITERS = 128, 4
"""How many operations etcd takes in one transaction, and how many of those are on their way at once."""
_FIRST, _FIRST_OTHER = int(IPAddress("10.128.0.0")), int(IPAddress("172.16.0.0"))
_NETLINK_NETFILTER, _NFNLGRP_NFTABLES, _SO_RCVBUFFORCE = 12, 7, 33
_NOTE = struct.Struct("=dI")
_NEW_ELEMENT = (10 << 8) | 12  # linux/netfilter/nfnetlink.h, nf_tables.h
_ELEMENTS, _ELEMENT, _KEY, _VALUE = 3, 1, 1, 1

Put = tuple[str, dict[str, Any]]


class Size(NamedTuple):
    remote: int = 100_000
    local: int = 200
    policies: int = 2_000
    rate: int = 1_000
    seconds: float = 60.0
    refresh: float = 60.0
    """Seconds between two looks of the agent at all that it has in the kernel; 60 unless it is told otherwise."""

    @property
    def groups(self) -> int:
        """Of remote endpoints; there is policy for each, and a local endpoint to which that applies."""
        return min(_MOST_GROUPS, self.local, self.policies)


class Result(NamedTuple):
    size: Size
    start_s: float
    took_s: float
    times_s: list[float]
    updates: int
    queue: int
    memory_mb: float
    peak_mb: float
    cpu_s: float
    writes_s: list[float]

    @property
    def missing(self) -> int:
        return self.updates - len(self.times_s)

    def percentile_s(self, share: float) -> float:
        return _percentile(self.times_s, share)

    @property
    def rate(self) -> float:
        return self.updates / self.took_s

    @property
    def problems(self) -> list[str]:
        limits = {
            "updates are missing": self.missing == 0,
            "the 99th percentile is too high": self.percentile_s(0.99) < P99_S,
            "the rate was not kept": self.rate >= self.size.rate * RATE_KEPT,
            "the queue grew": self.queue <= self.size.rate * P99_S,
            "memory grew": self.peak_mb <= self.memory_mb * MEMORY_GROWTH,
        }
        return [problem for problem, is_kept in limits.items() if not is_kept]

    @property
    def last_line(self) -> str:
        median, ninety_ninth, most = (self.percentile_s(share) * 1000 for share in (0.5, 0.99, 1.0))
        written = [_percentile(self.writes_s, share) * 1000 for share in (0.5, 0.99, 1.0)]
        return (
            f"start {self.start_s:.1f} s; {self.updates} updates at {self.rate:.0f}/s, {self.missing} missing, median "
            f"{median:.0f} ms, p99 {ninety_ninth:.0f} ms, most {most:.0f} ms; queue at most {self.queue}; memory "
            f"{self.memory_mb:.0f} MB, at most {self.peak_mb:.0f} MB; node's CPU {self.cpu_s:.1f} s; "
            f"etcd answered in median {written[0]:.0f} ms, p99 {written[1]:.0f} ms, most {written[2]:.0f} ms"
        )


def _percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else float("inf")


def run(size: Size) -> Result:
    with _laboratory() as host:
        descriptor = netns.open_namespace(str(host.namespace))
        try:
            return _measure(host, descriptor, size)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def _laboratory() -> Iterator[LabHost]:
    lab = Laboratory.create(f"scale{os.getpid() % 100000}", 1, datastore="etcd", routing="none")
    try:
        lab.up()
        yield lab.hosts[0]
    finally:
        lab.down()


def _measure(host: LabHost, descriptor: int, size: Size) -> Result:
    host.start_node()  # the first of all starts writes the host's records
    host.stop_node()
    etcd = host.environment["CALICO_DATASTORE"].partition("://")[2]
    with contextlib.closing(Gateway(etcd, descriptor)) as gateway:
        return _load_and_update(host, gateway, descriptor, size)


def _load_and_update(host: LabHost, gateway: Gateway, descriptor: int, size: Size) -> Result:
    _make_interfaces(host, size.local)
    with ThreadPoolExecutor(_WRITERS) as pool:
        bodies = map(transaction, _batches(_records(host.name, size), _OPERATIONS))
        collections.deque(pool.map(gateway.write, bodies), maxlen=0)
    started = time.monotonic()
    host.start_node(environment={"FELIX_NFTABLESREFRESHINTERVAL": str(size.refresh)}, timeout_s=_START_WITHIN_S)
    _await_ready(descriptor, started + _START_WITHIN_S)
    start_s = time.monotonic() - started
    before, _ = _memory_mb(host)
    cpu_s = _cpu_s(host)
    with contextlib.closing(Arrivals(descriptor)) as seen:
        took_s, writes_s = _update(gateway, seen, size)
        seen.await_all(_LAST_WAIT_S)
        cpu_s = _cpu_s(host) - cpu_s
        times_s, queue, expected = seen.times_s(), seen.longest_queue(), seen.expected
    _, peak = _memory_mb(host)
    return Result(size, start_s, took_s, times_s, expected, queue, before, peak, cpu_s, writes_s)


# --- what is stored --------------------------------------------------------------------------------------------------


def _records(host: str, size: Size) -> Iterator[Put]:
    profile = {"inbound_rules": [], "outbound_rules": [{"action": "allow"}]}
    yield "/calico/v1/policy/profile/p/rules", profile
    for number in range(size.policies):
        rule = {"action": "allow", "protocol": "tcp", "src_selector": f"group == 'g{number % size.groups}'"}
        policy = {
            "selector": f"app == 'a{number % size.groups}'",
            "order": number,
            "types": ["ingress"],
            "inbound_rules": [{**rule, "dst_ports": [1000 + number]}],
        }
        yield f"/calico/v1/policy/tier/default/policy/p{number}", policy
    for number in range(size.local):
        address = IPAddress(int(IPAddress("10.65.0.0")) + number)
        yield (
            f"/calico/v1/host/{host}/workload/k8s/w{number}/endpoint/eth0",
            _endpoint(f"cali{number}", address, {"app": f"a{number % size.groups}"}),
        )
    for number in range(size.remote):
        yield _remote(size, number)


def _remote(size: Size, number: int, group: int | None = None, address: int | None = None) -> Put:
    labels = {"group": f"g{(number if group is None else group) % size.groups}", "role": "client"}
    record = _endpoint("cali0", IPAddress(_FIRST + number if address is None else address), labels)
    return f"/calico/v1/host/there{number % HOSTS}/workload/k8s/w{number}/endpoint/eth0", record


def _endpoint(interface: str, address: IPAddress, labels: dict[str, str]) -> dict[str, Any]:
    nets = [f"{address}/32"]
    return {"state": "active", "name": interface, "profile_ids": ["p"], "ipv4_nets": nets, "labels": labels}


def _update(gateway: Gateway, seen: Arrivals, size: Size) -> tuple[float, list[float]]:
    """The seconds it took, and those of each transaction until etcd answered."""
    total = int(size.rate * size.seconds)
    if total > size.remote:
        raise SystemExit(f"{total} updates need as many remote endpoints: --remote")
    per_tick = max(1, int(size.rate * _TICK_S))
    ticks = [
        ([_address_of(put) for put in puts], transaction(puts))
        for puts in _batches((_changed(size, number) for number in range(total)), per_tick)
    ]

    def write(addresses: list[int], body: bytes) -> float:
        seen.expect(addresses)
        before = time.monotonic()
        gateway.write(body)
        return time.monotonic() - before

    started, writing = time.monotonic(), []
    with ThreadPoolExecutor(_WRITERS) as pool:
        for number, tick in enumerate(ticks):
            ahead = started + number * per_tick / size.rate - time.monotonic()
            if ahead > 0:
                time.sleep(ahead)
            writing.append(pool.submit(write, *tick))
    return time.monotonic() - started, [each.result() for each in writing]


def _address_of(put: Put) -> int:
    return int(IPAddress(put[1]["ipv4_nets"][0].partition("/")[0]))


def _changed(size: Size, number: int) -> Put:
    if number % 2:
        return _remote(size, number, address=_FIRST_OTHER + number)
    return _remote(size, number, group=number + 1)


def _batches(items: Iterable[Any], count: int) -> Iterator[list[Any]]:
    rest = iter(items)
    while some := list(itertools.islice(rest, count)):
        yield some


def transaction(puts: list[Put]) -> bytes:
    coded = [{"requestPut": {"key": _coded(path), "value": _coded(json.dumps(record))}} for path, record in puts]
    return json.dumps({"success": coded}).encode()


class Gateway:
    """etcd by its HTTP gateway from within a namespace, some connections kept. Any thread."""

    def __init__(self, address: str, descriptor: int) -> None:
        self._free: SimpleQueue[http.client.HTTPConnection] = SimpleQueue()
        for _ in range(_WRITERS):
            self._free.put(_connection(address, descriptor))

    def write(self, body: bytes) -> None:
        connection = self._free.get()
        try:
            connection.request("POST", "/v3/kv/txn", body)
            answer = connection.getresponse()
            text = answer.read()
        finally:
            self._free.put(connection)
        if answer.status != 200:
            raise RuntimeError(f"etcd: {answer.status} {text!r}")

    def close(self) -> None:
        for _ in range(_WRITERS):
            self._free.get().close()


def _coded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _connection(address: str, descriptor: int, timeout_s: float = 30.0) -> http.client.HTTPConnection:
    name, _, port = address.rpartition(":")
    found = http.client.HTTPConnection(name, int(port))
    found.sock = netns.socket_in(descriptor, socket.AF_INET, socket.SOCK_STREAM)
    found.sock.settimeout(timeout_s)
    try:
        found.sock.connect((name, int(port)))
    except OSError:
        found.close()
        raise
    return found


# --- the host --------------------------------------------------------------------------------------------------------


def _make_interfaces(host: LabHost, count: int) -> None:
    lines = [f"link add cali{number} type veth peer name peer{number}" for number in range(count)]
    lines += [f"link set {name}{number} up" for number in range(count) for name in ("cali", "peer")]
    host.run(["ip", "-batch", "-"], stdin="\n".join(lines) + "\n")


def _await_ready(descriptor: int, deadline: float) -> None:
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), contextlib.closing(_connection("127.0.0.1:9099", descriptor)) as connection:
            connection.request("GET", "/readiness")
            if connection.getresponse().status == 200:
                return
        time.sleep(0.05)
    raise RuntimeError("the node did not become ready")


def _memory_mb(host: LabHost) -> tuple[float, float]:
    """Now, and the most it ever was since this was last asked."""
    folder = Path(f"/proc/{host.node_pid}")
    fields = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
    (folder / "clear_refs").write_text("5")  # the highest is counted from here on (proc(5))
    now, highest = (int(fields[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM"))
    return now, highest


def _cpu_s(host: LabHost) -> float:
    fields = Path(f"/proc/{host.node_pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Arrivals:
    """Which addresses came into a set of the kernel's, and how long after they were expected. A process of its own
    notes it: who writes and who reads must not wait for one another."""

    def __init__(self, descriptor: int) -> None:
        self._since: dict[int, float] = {}
        self._lock = threading.Lock()
        self._notes = os.memfd_create("arrivals")
        with netns.socket_in(descriptor, socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as notices:
            notices.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 64 << 20)
            notices.bind((0, 1 << (_NFNLGRP_NFTABLES - 1)))
            fork = multiprocessing.get_context("fork")
            self._reader = fork.Process(target=_note, args=(notices, self._notes), daemon=True)
            self._reader.start()

    def expect(self, addresses: list[int]) -> None:
        now = time.monotonic()
        with self._lock:
            self._since.update(dict.fromkeys(addresses, now))

    @property
    def expected(self) -> int:
        return len(self._since)

    def await_all(self, within_s: float) -> None:
        """Or until the time is over: what is outstanding then is missing."""
        deadline = time.monotonic() + within_s
        while self._since.keys() - self._noted().keys() and time.monotonic() < deadline:
            time.sleep(0.2)

    def times_s(self) -> list[float]:
        noted = self._noted()
        return [noted[address] - since for address, since in self._since.items() if address in noted]

    def longest_queue(self) -> int:
        """Of what was written and had not come."""
        noted = self._noted()
        moments = [(since, 1) for since in self._since.values()]
        moments += [(noted[address], -1) for address in self._since if address in noted]
        return max(itertools.accumulate(step for _, step in sorted(moments)))

    def close(self) -> None:
        self._reader.terminate()
        self._reader.join()
        os.close(self._notes)

    def _noted(self) -> dict[int, float]:
        """When each came first."""
        size = os.fstat(self._notes).st_size // _NOTE.size * _NOTE.size
        found: dict[int, float] = {}
        for at, address in _NOTE.iter_unpack(os.pread(self._notes, size, 0)):
            found.setdefault(address, at)
        return found


def _note(notices: socket.socket, notes: int) -> None:
    """Until the process is ended."""
    while True:
        with contextlib.suppress(OSError):  # the kernel had more to say than there was room for: that is missing
            data = notices.recv(1 << 20)
            now = time.monotonic()
            os.write(notes, b"".join(_NOTE.pack(now, address) for address in _added(data)))


def _added(data: bytes) -> Iterator[int]:
    """IPv4 addresses that are elements now."""
    at = 0
    while at + 16 <= len(data):
        length, kind = struct.unpack_from("=IH", data, at)
        if kind == _NEW_ELEMENT:
            body = data[at + 20 : at + length]
            for elements in _attributes(body, _ELEMENTS):
                for element in _attributes(elements, _ELEMENT):
                    for key in _attributes(element, _KEY):
                        yield from (int.from_bytes(value, "big") for value in _attributes(key, _VALUE))
        at += max(16, (length + 3) & ~3)


def _attributes(data: bytes, wanted: int) -> Iterator[bytes]:
    at = 0
    while at + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, at)
        if kind & 0x3FFF == wanted:
            yield data[at + 4 : at + length]
        at += max(4, (length + 3) & ~3)


def main() -> int:
    parser = argparse.ArgumentParser(prog="scale", description=(__doc__ or "").partition("\n")[0])
    for name, default in Size._field_defaults.items():
        parser.add_argument(f"--{name}", type=positive if isinstance(default, int) else float, default=default)
    chosen = parser.parse_args()
    require_root(parser)
    result = run(Size(**vars(chosen)))
    for problem in result.problems:
        print(problem)
    print(result.last_line)
    return 1 if result.problems else 0


if __name__ == "__main__":
    sys.exit(main())
