"""The node agent, live: start, a write in the datastore until the kernel has it, memory and idle time.

``python tests/benchmarks/bench_agent.py [--dataplane nftables|iptables] [--writes N] [--idle SECONDS]``. Needs root.
The set-up is that of the peer's benchmark: a namespace plays the host, a real etcd, 100 endpoints made by the CNI
plugin, 100 policies (``bench`` applies to 90 of them, 99 more to 10 each). Start: from spawning the node to 200 from
its readiness URL; "empty" without anything, "cold" with the records and an empty kernel, "restart" with the kernel as
it should be. Write to kernel: from just before one put through etcd's HTTP gateway to the first (and the last) line of
``nft monitor`` about something of ours, or until the ipset has the member. Prints a JSON line a workload; yardsticks
first and last, and what the programs need to list and to load the ruleset.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.benchmarks import namespaces, yardsticks
from tests.benchmarks.cni_plugin import Plugin, ours
from tests.benchmarks.kernels import KERNELS, Kernel, MemberWatch, Monitor
from tests.benchmarks.laboratory import a_host, arguments_or_plan, install_plugin, run_inside
from tests.command_line import require_root

ENDPOINTS = 100
READY_WITHIN_S = 60.0
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
        return self._ticks(11)

    def programs_cpu_s(self) -> float:
        """Of those that it started and that have ended."""
        return self._ticks(13)

    def _ticks(self, first: int) -> float:
        fields = Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[first]) + int(fields[first + 1])) / os.sysconf("SC_CLK_TCK")

    def thread_cpu_s(self) -> float:
        """To the nanosecond, of the threads that live."""
        used = 0
        for task in Path(f"/proc/{self._pid}/task").iterdir():
            with contextlib.suppress(OSError):  # it ended meanwhile
                used += int((task / "schedstat").read_text().split()[0])
        return used / 1e9

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
        _starts_and_writes(plan, gateway, node, KERNELS[plan["dataplane"]]())
    finally:
        with contextlib.suppress(Exception):
            node.stop()


def _starts_and_writes(plan: dict[str, Any], gateway: Gateway, node: Node, kernel: Kernel) -> None:
    node.start()  # the first start of all writes the host's records; not timed
    empty = []
    for _ in range(plan["starts"]):
        node.stop()
        kernel.forget()
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
    reference = kernel.yardstick()
    for kind in ("cold", "restart"):
        seconds = []
        for _ in range(plan["starts"]):
            node.stop()
            if kind == "cold":
                kernel.forget()
            seconds.append(node.start())
            kernel.check(ENDPOINTS)
        yardsticks.report(f"5a-{kind}", **yardsticks.summary(seconds), **node.memory(), programs=reference)

    monitor = Monitor(kernel.mark)
    try:
        _writes(plan["writes"], gateway, kernel, monitor, node, endpoints)
    finally:
        monitor.close()
    yardsticks.report("5-memory", **node.memory())
    before = node.cpu_s()
    time.sleep(plan["idle_s"])
    yardsticks.report("5-idle", seconds=plan["idle_s"], cpu_share=round((node.cpu_s() - before) / plan["idle_s"], 5))


def _writes(
    count: int, gateway: Gateway, kernel: Kernel, monitor: Monitor, node: Node, endpoints: list[tuple[str, bytes]]
) -> None:
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

    watched = kernel.member_watch(monitor, record, [each for _, each in endpoints[::10]])
    _time({"one-rule": changed_port}, count, monitor, node)
    _time({"policy-of-90-deleted": deleted, "policy-of-90-added": added}, count, monitor, node)
    _time({"member-gained": gains, "member-lost": loses}, count, watched, node)
    _time({"endpoint-deleted": gone, "endpoint-written": loses}, count, monitor, node)


def _time(kinds: dict[str, Callable[[int], None]], count: int, watch: Monitor | MemberWatch, node: Node) -> None:
    """Each in turn. For a machine that is not idle, the processor time: of the agent's own threads until the change is
    seen, and of the programs it started, by the mean."""
    first: dict[str, list[float]] = {name: [] for name in kinds}
    last: dict[str, list[float]] = {name: [] for name in kinds}
    cpu: dict[str, list[float]] = {name: [] for name in kinds}
    programs = dict.fromkeys(kinds, 0.0)
    lines: dict[str, int] = {}
    for turn in range(count):
        for name, write in kinds.items():
            watch.drain()
            programs_before, before = node.programs_cpu_s(), node.thread_cpu_s()
            started = time.perf_counter()
            write(turn)
            at = watch.first()
            cpu[name].append(node.thread_cpu_s() - before)
            first[name].append(at - started)
            end, more = watch.drain()
            last[name].append(max(end, at) - started)
            lines[name] = more + 1
            programs[name] += node.programs_cpu_s() - programs_before
    for name in kinds:
        fields: dict[str, object] = {**yardsticks.summary(first[name]), **yardsticks.cpu_us(cpu[name])}
        fields["last_median_ms"] = yardsticks.summary(last[name])["median_ms"]
        fields["programs_cpu_ms"] = round(programs[name] / count * 1000, 1)
        yardsticks.report(f"5b-{name}", **fields, lines=lines[name])


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


# --- outside ---------------------------------------------------------------------------------------


def outside(arguments: argparse.Namespace) -> None:
    prefix = f"bagent{os.getpid()}x"
    # an installation has its modules compiled: so does this one, after the first start
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    with tempfile.TemporaryDirectory(prefix="bench-agent-") as compiled, yardsticks.first_and_last():
        os.environ["PYTHONPYCACHEPREFIX"] = compiled
        driver = {"CALICO_DATAPLANE_DRIVER": arguments.dataplane}
        with a_host(f"bench-agent-{arguments.dataplane}", "etcd", driver) as host:
            plan = {
                "dataplane": arguments.dataplane,
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
    parser.add_argument("--dataplane", choices=sorted(KERNELS), default="nftables")
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
