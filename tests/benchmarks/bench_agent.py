"""The node agent, live: start, a write in the datastore until the kernel has it, memory and idle time.

``python tests/benchmarks/bench_agent.py [--writes N] [--idle SECONDS]``. Needs root. The set-up is that of the peer's
benchmark: a namespace plays the host, a real etcd, 100 endpoints made by the CNI plugin, 100 policies (``bench``
applies to 90 of them, 99 more to 10 each). Start: from spawning the node to 200 from its readiness URL; "empty" without
anything, "cold" with the records and an empty kernel, "restart" with the kernel as it should be. Write to kernel: from
just before one put through etcd's HTTP gateway to the first (and the last) line of ``nft monitor`` about our table.
Prints a JSON line a workload; yardsticks first and last, ``nft -f`` and ``nft list`` of the ruleset among them.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import http.client
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from tests.benchmarks import namespaces, nft, yardsticks
from tests.benchmarks.cni_plugin import Plugin, ours
from tests.benchmarks.laboratory import a_host, arguments_or_plan, install_plugin, run_inside
from tests.command_line import require_root

ENDPOINTS = 100
READY_WITHIN_S, CHANGED_WITHIN_S = 60.0, 20.0
#: Between two writes at least this; a transaction is over when nothing was printed for so long.
PAUSE_S = 0.7
ASK_S = 0.01


# --- inside the host's namespace -----------------------------------------------------------------


class Gateway:
    """etcd by its HTTP gateway, one connection kept."""

    def __init__(self, address: str) -> None:
        self._connection = http.client.HTTPConnection(address, timeout=10)

    def put(self, key: str, value: bytes) -> None:
        self._ask("put", {"key": _coded(key.encode()), "value": _coded(value)})

    def delete(self, key: str) -> None:
        self._ask("deleterange", {"key": _coded(key.encode())})

    def list(self, prefix: str) -> dict[str, bytes]:
        end = prefix.encode()[:-1] + bytes((prefix.encode()[-1] + 1,))
        found = self._ask("range", {"key": _coded(prefix.encode()), "range_end": _coded(end)})
        return {
            base64.b64decode(each["key"]).decode(): base64.b64decode(each["value"]) for each in found.get("kvs", ())
        }

    def _ask(self, operation: str, body: dict[str, str]) -> Any:
        self._connection.request("POST", f"/v3/kv/{operation}", json.dumps(body))
        answer = self._connection.getresponse()
        text = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"etcd: {answer.status} {text!r}")
        return json.loads(text)


def _coded(value: bytes) -> str:
    return base64.b64encode(value).decode()


class Monitor:
    """``nft monitor``: when it printed a line about our table."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(["nft", "monitor"], stdout=subprocess.PIPE)
        self._lines: queue.Queue[tuple[float, bytes]] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        self._await_ready()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put((time.perf_counter(), line))

    def _await_ready(self) -> None:
        """A table that comes and goes is printed: it listens."""
        while True:
            for command in ("add", "delete"):
                nft.nft(command, "table", "inet", "bench_ready")
            with contextlib.suppress(queue.Empty):
                self._lines.get(timeout=0.3)
                break
        self.drain()

    def drain(self) -> tuple[float, int]:
        """Wait until nothing came for the pause: when the last line about our table came, and how many did."""
        last, count = 0.0, 0
        while True:
            try:
                at, line = self._lines.get(timeout=PAUSE_S)
            except queue.Empty:
                return last, count
            if b"inet calico" in line:
                last, count = at, count + 1

    def first(self) -> float:
        while True:
            at, line = self._lines.get(timeout=CHANGED_WITHIN_S)
            if b"inet calico" in line:
                return at

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()


class Node:
    """The agent as a process."""

    def __init__(self, argv: list[str], log: str) -> None:
        self._argv, self._log = argv, log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> float:
        """Seconds until it is ready."""
        with open(self._log, "ab") as log:
            started = time.perf_counter()
            self._process = subprocess.Popen(self._argv, stdout=log, stderr=log)
        while not self._is_ready():
            if self._process.poll() is not None or time.perf_counter() - started > READY_WITHIN_S:
                raise RuntimeError(f"not ready: {Path(self._log).read_text()[-2000:]}")
            time.sleep(ASK_S)
        return time.perf_counter() - started

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(timeout=30)
            self._process = None

    def memory(self) -> dict[str, float]:
        lines = Path(f"/proc/{self._pid}/status").read_text().splitlines()
        fields = {line.partition(":")[0]: line.split()[1] for line in lines if line.startswith("Vm")}
        return {"rss_mb": round(int(fields["VmRSS"]) / 1024, 1), "highest_mb": round(int(fields["VmHWM"]) / 1024, 1)}

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def _pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def _is_ready(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", 9099, timeout=2)
        try:
            connection.request("GET", "/readiness")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()


def inside(plan: dict[str, Any]) -> None:
    gateway = Gateway(plan["etcd"])
    node = Node(plan["node"], plan["log"])
    try:
        _starts_and_writes(plan, gateway, node)
    finally:
        with contextlib.suppress(Exception):
            node.stop()


def _starts_and_writes(plan: dict[str, Any], gateway: Gateway, node: Node) -> None:
    node.start()  # the first start of all writes the host's records; not timed
    empty = []
    for _ in range(plan["starts"]):
        node.stop()
        _forget_kernel()
        empty.append(node.start())
    yardsticks.report("5a-empty", **yardsticks.summary(empty), **node.memory())

    with tempfile.TemporaryDirectory() as folder:
        plugin = Plugin(**plan["plugin"], folder=Path(folder))
        for number in range(ENDPOINTS):
            plugin.call("ADD", f"{plan['containers']}{number}")
    endpoints = _label(plan, gateway)
    for name, policy in _policies().items():
        gateway.put(_policy_key(name), json.dumps(policy).encode())
    node.stop()
    reference = nft.yardstick()
    for kind in ("cold", "restart"):
        seconds = []
        for _ in range(plan["starts"]):
            node.stop()
            if kind == "cold":
                _forget_kernel()
            seconds.append(node.start())
            _check_kernel()
        yardsticks.report(f"5a-{kind}", **yardsticks.summary(seconds), **node.memory(), nft=reference)

    monitor = Monitor()
    try:
        _writes(plan["writes"], gateway, monitor, endpoints)
    finally:
        monitor.close()
    yardsticks.report("5-memory", **node.memory())
    before = node.cpu_s()
    time.sleep(plan["idle_s"])
    yardsticks.report("5-idle", seconds=plan["idle_s"], cpu_share=round((node.cpu_s() - before) / plan["idle_s"], 5))


def _writes(count: int, gateway: Gateway, monitor: Monitor, endpoints: list[tuple[str, bytes]]) -> None:
    bench = _policies()["bench"]
    path, record = endpoints[1]
    other = json.loads(record)
    other["labels"]["role"] = "db"

    def changed_port(turn: int) -> None:
        bench["inbound_rules"][0]["dst_ports"] = [19998 if turn % 2 else 19997]
        gateway.put(_policy_key("bench"), json.dumps(bench).encode())

    def added(_turn: int) -> None:
        gateway.put(_policy_key("bench"), json.dumps(bench).encode())

    def deleted(_turn: int) -> None:
        gateway.delete(_policy_key("bench"))

    def gains(_turn: int) -> None:
        gateway.put(path, json.dumps(other).encode())

    def loses(_turn: int) -> None:
        gateway.put(path, record)

    def gone(_turn: int) -> None:
        gateway.delete(path)

    for kinds in (
        {"one-rule": changed_port},
        {"policy-of-90-deleted": deleted, "policy-of-90-added": added},
        {"member-gained": gains, "member-lost": loses},
        {"endpoint-deleted": gone, "endpoint-written": loses},
    ):
        first: dict[str, list[float]] = {name: [] for name in kinds}
        last: dict[str, list[float]] = {name: [] for name in kinds}
        lines: dict[str, int] = {}
        for turn in range(count):
            for name, write in kinds.items():
                monitor.drain()
                started = time.perf_counter()
                write(turn)
                at = monitor.first()
                first[name].append(at - started)
                end, more = monitor.drain()
                last[name].append(max(end, at) - started)
                lines[name] = more + 1
        for name in kinds:
            last_ms = yardsticks.summary(last[name])["median_ms"]
            fields = yardsticks.summary(first[name])
            yardsticks.report(f"5b-{name}", **fields, last_median_ms=last_ms, lines=lines[name])


def _label(plan: dict[str, Any], gateway: Gateway) -> list[tuple[str, bytes]]:
    """Give the endpoints their labels, in the order of their numbers."""
    found = gateway.list(f"/calico/v1/host/{plan['host']}/workload/")
    if len(found) != ENDPOINTS:
        raise RuntimeError(f"{len(found)} endpoints, not {ENDPOINTS}")
    endpoints = []
    for number, (path, value) in enumerate(found.items()):
        record = json.loads(value)
        labels = {"role": "web" if number % 10 else "db", "group": f"g{number % 10}"}
        record["labels"] = {**record.get("labels", {}), **labels}
        endpoints.append((path, json.dumps(record).encode()))
        gateway.put(*endpoints[-1])
    return endpoints


def _policies() -> dict[str, dict[str, Any]]:
    def allows(selector: str, source: str, port: int, **more: object) -> dict[str, Any]:
        rule = {"action": "allow", "protocol": "tcp", "src_selector": source, "dst_ports": [port]}
        return {"selector": selector, "inbound_rules": [rule], "outbound_rules": [], "types": ["ingress"], **more}

    policies = {"bench": allows("role == 'web'", "role == 'db'", 19999)}
    for number in range(1, 100):
        source = f"group == 'g{(number + 1) % 10}'"
        policies[f"p{number}"] = allows(f"group == 'g{number % 10}'", source, 20000 + number, order=100 + number)
    return policies


def _policy_key(name: str) -> str:
    return f"/calico/v1/policy/tier/default/policy/{name}"


def _forget_kernel() -> None:
    with contextlib.suppress(subprocess.CalledProcessError):
        nft.nft("delete", "table", *nft.TABLE)


def _check_kernel() -> None:
    text = nft.nft("list", "table", *nft.TABLE)
    chains = sum(line.strip().startswith("chain pi_") for line in text.splitlines())
    if chains < 100 or text.count("goto to_") < ENDPOINTS:
        raise RuntimeError(f"ready, but the kernel has {chains} chains of policies")


# --- outside ---------------------------------------------------------------------------------------


def outside(arguments: argparse.Namespace) -> None:
    prefix = f"bagent{os.getpid()}x"
    # an installation has its modules compiled: so does this one, after the first start
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    with tempfile.TemporaryDirectory(prefix="bench-agent-") as compiled, yardsticks.first_and_last():
        os.environ["PYTHONPYCACHEPREFIX"] = compiled
        with a_host("bench-agent", "etcd") as host:
            plan = {
                "host": host.name,
                "etcd": host.environment["CALICO_DATASTORE"].partition("://")[2],
                "node": [str(Path(sys.executable).with_name("calico-node")), "run"],
                "log": str(host.node_log),
                "plugin": ours("calico", install_plugin(host, "bench")),
                "containers": prefix,
                "writes": arguments.writes,
                "starts": arguments.starts,
                "idle_s": arguments.idle,
            }
            with namespaces.named(f"{prefix}{number}" for number in range(ENDPOINTS)):
                run_inside(host, __file__, plan, timeout_s=1800)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--writes", type=int, default=30, help="of each kind")
    parser.add_argument("--starts", type=int, default=3, help="of each kind")
    parser.add_argument("--idle", type=float, default=30.0, help="seconds to look at the idle agent")
    arguments, plan = arguments_or_plan(parser)
    if plan is not None:
        inside(plan)
        return
    require_root(parser)
    outside(arguments)


if __name__ == "__main__":
    main()
