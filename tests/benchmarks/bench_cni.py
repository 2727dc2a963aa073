"""CNI ADD and DEL as whole processes: our executables on a warm runtime beside the reference ``ptp`` + ``host-local``.

``python tests/benchmarks/bench_cni.py [--rounds N] [--bursts N] [--store sqlite|etcd]``. Needs root, Debian's
containernetworking-plugins and, for the row of the compiled shim, a C compiler. First the bare start (VERSION).
In every round each plugin does one ADD, in shuffled order; then the same for DEL; then bursts: 30 by 8 workers, 16 and
100 at once. Then one at a time, 16 and 100 at once again while a profile changes 100 times a second that 30 standing
endpoints of ours follow, so that each change goes to the kernel, on a host with a hundred connections, so that they are
looked through for what is denied now. Last the node is stopped, and a call runs in a process of its own. Clock: from
just before the program is spawned to its end. Prints a JSON line a workload, yardsticks first and last.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from calico_core.interfaces.datastore import DatastoreOptions
from calico_core.model import codec
from calico_core.model.keys import ProfileRulesKey
from calico_core.model.rules import Rule, RuleLists
from calico_core.plugin_host.loader import load_driver
from calico_core.plugin_host.namespaces import DATASTORES
from tests.benchmarks import connections, namespaces, yardsticks
from tests.benchmarks.cni_plugin import Plugin, ours
from tests.benchmarks.laboratory import Store, a_host, arguments_or_plan, install_plugin, run_inside
from tests.command_line import positive, require_root

REFERENCE = Path("/usr/lib/cni")
BURSTS = ((30, 8), (16, 16), (100, 100))
CHURNED_BURSTS = ((16, 16), (100, 100))
CHURN_INTERVAL_S = 0.01
STANDING = 30
CONNECTIONS = 100
NODE_DOWN_AIM = 10


# --- inside the host's namespace -----------------------------------------------------------------


def inside(plan: dict[str, Any]) -> None:
    """Runs in the host's namespace; the containers' namespaces exist."""
    with tempfile.TemporaryDirectory() as folder:
        plugins = [Plugin(**entry, folder=Path(folder)) for entry in plan["plugins"]]
        containers = plan["containers"]
        for plugin in plugins:  # a warm-up each: caches of the kernel, a first block
            for command in ("ADD", "DEL"):
                plugin.call(command, f"{containers}w")
            memory = {command: plugin.max_rss_kb(command, f"{containers}w") for command in ("ADD", "DEL")}
            yardsticks.report(f"{plan['workload']}.max_rss_kb.{plugin.name}", **memory)
        if plan["node_pid"] is None:
            times = _one_at_a_time(plugins, plan)
            _ratios(plugins, plan, times, aim_ADD=NODE_DOWN_AIM)
            return
        for plugin in plugins:
            seconds = [plugin.call("VERSION", f"{containers}w") for _ in range(plan["rounds"])]
            yardsticks.report(f"cni.VERSION.{plugin.name}", **yardsticks.summary(seconds))
        quiet = _one_at_a_time(plugins, plan)
        _ratios(plugins, plan, quiet)
        for count, workers in BURSTS:
            _bursts(plugins, plan, count, workers)
        compared = [plugin for plugin in plugins if plugin.name != "bridge"]
        standing = [f"{containers}s{number}" for number in range(STANDING)]
        (first, *_) = plugins
        for container in standing:
            first.call("ADD", container)
        connections.enter(CONNECTIONS)
        with _churn(plan["url"]):
            churned = plan | {"workload": "cni.churn100"}
            times = _one_at_a_time(compared, churned, quiet)
            _ratios(compared, churned, times)
            for count, workers in CHURNED_BURSTS:
                _bursts(compared, churned, count, workers)
        for container in standing:
            first.call("DEL", container)
        status = Path(f"/proc/{plan['node_pid']}/status").read_text(encoding="ascii")
        yardsticks.report("cni.node", max_rss_kb=int(status.partition("VmHWM:")[2].split()[0]))


Times = dict[tuple[str, str], list[float]]
"""By plugin and command."""


def _one_at_a_time(plugins: list[Plugin], plan: dict[str, Any], quiet: Times | None = None) -> Times:
    """Processor time is that of what is executed, and that of the node until it rests: it goes on when the caller has
    its answer. Under churn it never rests, and what it does for that is in it."""
    order = random.Random(20)
    times: Times = {}
    node_s: dict[tuple[str, str], float] = {}
    for plugin in plugins:
        plugin.cpu_s.clear()
    for command in ("ADD", "DEL"):
        for number in range(plan["rounds"]):
            for plugin in order.sample(plugins, len(plugins)):
                before = _cpu_s(plan["node_pid"])
                seconds = plugin.call(command, f"{plan['containers']}{plugin.name}{number}")
                times.setdefault((plugin.name, command), []).append(seconds)
                _await_idle(plan["node_pid"], is_ours=plugin.name.startswith("calico"))
                used = _cpu_s(plan["node_pid"]) - before
                node_s[plugin.name, command] = node_s.get((plugin.name, command), 0.0) + used
    for (name, command), seconds in times.items():
        (plugin,) = (each for each in plugins if each.name == name)
        figures = {
            "cpu_ms": round(statistics.median(plugin.cpu_s[command]) * 1000, 2),
            "node_cpu_ms": round(node_s[name, command] / plan["rounds"] * 1000, 2),
        }
        summary = yardsticks.summary(seconds)
        if quiet is not None:
            base_ms = statistics.median(quiet[name, command]) * 1000
            figures["p99_to_quiet_median"] = round(summary["p99_ms"] / base_ms, 2)
        yardsticks.report(f"{plan['workload']}.{command}.{name}", **figures, **summary)
    return times


def _await_idle(pid: int | None, *, is_ours: bool) -> None:
    """Until the node has done nothing for two milliseconds, a tenth of a second at most."""
    if pid is None or not is_ours:
        return
    deadline, before = time.perf_counter() + 0.1, -1.0
    while time.perf_counter() < deadline:
        now = _cpu_s(pid)
        if now == before:
            return
        before = now
        time.sleep(0.002)


def _cpu_s(pid: int | None) -> float:
    """Of all threads of a process, by the scheduler's own account."""
    used_ns = 0
    for found in Path(f"/proc/{pid}/task").glob("*/schedstat") if pid is not None else ():
        try:
            used_ns += int(found.read_text(encoding="ascii").split()[0])
        except OSError:  # it has just ended
            continue
    return used_ns / 1e9


def _ratios(plugins: list[Plugin], plan: dict[str, Any], times: Times, **more: float) -> None:
    base = {command: statistics.median(times["ptp", command]) for command in ("ADD", "DEL")}
    for plugin in plugins:
        if plugin.name != "ptp":
            ratios = {
                f"{command}_ratio": round(statistics.median(times[plugin.name, command]) / base[command], 2)
                for command in ("ADD", "DEL")
            }
            yardsticks.report(f"{plan['workload']}.ratio.{plugin.name}/ptp", **ratios, **more)


def _bursts(plugins: list[Plugin], plan: dict[str, Any], count: int, workers: int) -> None:
    """``total``: until all have their answer. The rest is of the single calls of all repetitions."""
    totals: Times = {}
    each: Times = {}
    with ThreadPoolExecutor(workers) as pool:
        for _ in range(plan["bursts"]):
            for plugin in plugins:
                names = [f"{plan['containers']}{plugin.name}{number}" for number in range(count)]
                for command in ("ADD", "DEL"):
                    started = time.perf_counter()
                    calls = list(pool.map(lambda name, p=plugin, c=command: p.call(c, name), names))
                    totals.setdefault((plugin.name, command), []).append(time.perf_counter() - started)
                    each.setdefault((plugin.name, command), []).extend(calls)
    for (name, command), seconds in totals.items():
        base = statistics.median(totals["ptp", command])
        ratio = round(statistics.median(seconds) / base, 2)
        call_ratio = round(statistics.median(each[name, command]) / statistics.median(each["ptp", command]), 2)
        yardsticks.report(
            f"{plan['workload']}.burst.{count}at{workers}.{command}.{name}", ratio_to_ptp=ratio,
            total=yardsticks.summary(seconds), call_ratio_to_ptp=call_ratio, **yardsticks.summary(each[name, command]),
        )  # fmt: skip


@contextmanager
def _churn(url: str) -> Iterator[None]:
    """The rules of the profile that all our endpoints have change meanwhile."""
    argv = [sys.executable, str(Path(__file__).resolve()), "--churn", url]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()  # it has begun
        try:
            yield
        finally:
            writer.terminate()
            wrote = writer.stdout.read().split()
    yardsticks.report("cni.churn100.writer", changes_per_s=float(wrote[-1]) if wrote else 0.0)


def churn(url: str) -> None:
    """Change the rules of the profile ``bench`` a hundred times a second until terminated."""
    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda *_: stopping.append(1))
    store = load_driver(DATASTORES, url.partition("://")[0]).open(url, DatastoreOptions())
    key = ProfileRulesKey("bench").path
    own = Rule(action="allow", src_tag="bench")
    versions = [
        codec.encode(RuleLists(id="bench", inbound_rules=rules, outbound_rules=(Rule(action="allow"),)))
        for rules in ((own,), (own, Rule(action="deny", protocol="tcp")))
    ]
    started = time.perf_counter()
    number = 0
    sys.stdout.write("begun\n")
    sys.stdout.flush()
    while not stopping:
        store.put(key, versions[number % 2])
        number += 1
        time.sleep(max(0.0, started + number * CHURN_INTERVAL_S - time.perf_counter()))
    sys.stdout.write(f"{number / (time.perf_counter() - started):.1f}\n")
    store.close()


# --- outside ---------------------------------------------------------------------------------------


def outside(rounds: int, bursts: int, stores: tuple[Store, ...]) -> None:
    prefix = f"bench{os.getpid()}x"
    with yardsticks.first_and_last():
        for store in stores:
            with a_host(f"bench-{store}", store) as host:
                host.start_node()
                shims = _shims()
                plugins = [
                    *(ours(f"calico-{store}-{shim}", install_plugin(host, shim, "--shim", shim)) for shim in shims),
                    _reference("ptp", {"ipMasq": False}),
                    _reference("bridge", {"isGateway": True, "bridge": "br-bench"}),
                ]
                names = [f"{plugin['name']}{number}" for plugin in plugins for number in range(max(rounds, 100))]
                names += [f"s{number}" for number in range(STANDING)]
                plan = {
                    "workload": "cni",
                    "rounds": rounds,
                    "bursts": bursts,
                    "containers": prefix,
                    "plugins": plugins,
                    "url": host.environment["CALICO_DATASTORE"],
                    "node_pid": host.node_pid,
                }
                with namespaces.named(f"{prefix}{name}" for name in [*names, "w"]):
                    run_inside(host, __file__, plan, timeout_s=1800)
                    host.stop_node()
                    compared = [plugin for plugin in plugins if plugin["name"] != "bridge"]
                    down = {"workload": f"cni.node-down.{store}", "plugins": compared, "node_pid": None}
                    run_inside(host, __file__, plan | down, timeout_s=900)


def _shims() -> tuple[str, ...]:
    if shutil.which("cc") is None:
        yardsticks.report("cni.left-out", rows="compiled shim", reason="no C compiler (cc) is installed")
        return ("python",)
    return ("compiled", "python")


def _reference(name: str, options: dict[str, Any]) -> dict[str, Any]:
    subnet = {"ptp": "10.98.0.0/16", "bridge": "10.99.0.0/16"}[name]
    ipam = {
        "type": "host-local",
        "subnet": subnet,
        "routes": [{"dst": "0.0.0.0/0"}],
        "dataDir": f"/run/calico-bench-{name}",
    }
    config = {"cniVersion": "1.0.0", "name": f"bench-{name}", "type": name, "ipam": ipam, **options}
    return {"name": name, "executable": str(REFERENCE / name), "path": str(REFERENCE), "config": config}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=positive, default=60)
    parser.add_argument("--bursts", type=positive, default=5)
    parser.add_argument("--store", choices=["sqlite", "etcd"], action="append", help="only this one")
    parser.add_argument("--churn", help=argparse.SUPPRESS)
    arguments, plan = arguments_or_plan(parser)
    if arguments.churn:
        churn(arguments.churn)
        return
    if plan is not None:
        inside(plan)
        return
    require_root(parser)
    if not (REFERENCE / "ptp").exists():
        parser.error("needs the package containernetworking-plugins")
    try:
        outside(arguments.rounds, arguments.bursts, tuple(arguments.store or ("sqlite", "etcd")))
    finally:
        for name in ("ptp", "bridge"):
            subprocess.run(["rm", "-rf", f"/run/calico-bench-{name}"], check=False)


if __name__ == "__main__":
    main()
