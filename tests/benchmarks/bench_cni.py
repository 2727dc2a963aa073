"""CNI ADD and DEL as whole processes: our executables on a warm runtime beside the reference ``ptp`` + ``host-local``.

``python tests/benchmarks/bench_cni.py [--rounds N] [--bursts N] [--store sqlite|etcd]``. Needs root, Debian's
containernetworking-plugins and, for the row of the compiled shim, a C compiler. First the bare start (VERSION).
In every round each plugin does one ADD, in shuffled order; then the same for DEL; then bursts: 30 by 8 workers, 16 and
100 at once. Then ADD and DEL again while a policy that all our endpoints follow changes 100 times a second. Clock: from
just before the program is spawned to its end. Prints a JSON line a workload, yardsticks first and last.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from calico_core.interfaces.datastore import DatastoreOptions
from calico_core.model import codec
from calico_core.model.keys import ProfileRulesKey
from calico_core.model.rules import Rule, RuleLists
from calico_core.plugin_host.loader import load_driver
from calico_core.plugin_host.namespaces import DATASTORES
from tests.benchmarks import namespaces, yardsticks
from tests.benchmarks.cni_plugin import Plugin, ours
from tests.benchmarks.laboratory import Store, a_host, install_plugin, run_inside

REFERENCE = Path("/usr/lib/cni")
BURSTS = ((30, 8), (16, 16), (100, 100))
CHURN_INTERVAL_S = 0.01


# --- inside the host's namespace -----------------------------------------------------------------


def inside(plan: dict[str, Any]) -> None:
    """Runs in the host's namespace; the containers' namespaces exist."""
    with tempfile.TemporaryDirectory() as folder:
        plugins = [Plugin(**entry, folder=Path(folder)) for entry in plan["plugins"]]
        rounds, containers = plan["rounds"], plan["containers"]
        for plugin in plugins:
            seconds = [plugin.call("VERSION", f"{containers}w") for _ in range(rounds)]
            yardsticks.report(f"cni.VERSION.{plugin.name}", **yardsticks.summary(seconds))
        for plugin in plugins:  # a warm-up each: caches of the kernel, a first block
            plugin.call("ADD", f"{containers}w")
            plugin.call("DEL", f"{containers}w")
        order = random.Random(20)
        times: dict[tuple[str, str], list[float]] = {}
        for command in ("ADD", "DEL"):
            for number in range(rounds):
                for plugin in order.sample(plugins, len(plugins)):
                    container = f"{containers}{plugin.name}{number}"
                    times.setdefault((plugin.name, command), []).append(plugin.call(command, container))
        for (name, command), seconds in times.items():
            (plugin,) = (each for each in plugins if each.name == name)
            cpu_ms = round(statistics.median(plugin.cpu_s[command]) * 1000, 2)  # of what is executed, not of the node
            yardsticks.report(
                f"cni.{command}.{name}",
                cpu_ms=cpu_ms,
                **yardsticks.summary(seconds),
            )
        base = {command: statistics.median(times["ptp", command]) for command in ("ADD", "DEL")}
        for plugin in plugins:
            if plugin.name != "ptp":
                ratios = {
                    f"{command}_ratio": round(statistics.median(times[plugin.name, command]) / base[command], 2)
                    for command in ("ADD", "DEL")
                }
                yardsticks.report(f"cni.ratio.{plugin.name}/ptp", **ratios)
        for count, workers in BURSTS:
            _bursts(plugins, containers, plan["bursts"], count, workers)
        ours = [plugin for plugin in plugins if plugin.name.startswith("calico")]
        _under_churn(ours, containers, plan, times)


def _bursts(plugins: list[Plugin], containers: str, repetitions: int, count: int, workers: int) -> None:
    totals: dict[tuple[str, str], list[float]] = {}
    with ThreadPoolExecutor(workers) as pool:
        for _ in range(repetitions):
            for plugin in plugins:
                names = [f"{containers}{plugin.name}{number}" for number in range(count)]
                for command in ("ADD", "DEL"):
                    started = time.perf_counter()
                    list(pool.map(lambda name, p=plugin, c=command: p.call(c, name), names))
                    totals.setdefault((plugin.name, command), []).append(time.perf_counter() - started)
    for (name, command), seconds in totals.items():
        base = statistics.median(totals["ptp", command])
        ratio = round(statistics.median(seconds) / base, 2)
        kind = f"{count}at{workers}"
        yardsticks.report(f"cni.burst.{kind}.{command}.{name}", ratio_to_ptp=ratio, **yardsticks.summary(seconds))


def _under_churn(
    plugins: list[Plugin], containers: str, plan: dict[str, Any], quiet: dict[tuple[str, str], list[float]]
) -> None:
    """One at a time, while the rules of the profile that all of them have change."""
    argv = [sys.executable, str(Path(__file__).resolve()), "--churn", plan["url"]]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()  # it has begun
        try:
            for plugin in plugins:
                times: dict[str, list[float]] = {"ADD": [], "DEL": []}
                for number in range(plan["churn_rounds"]):
                    for command, seconds in times.items():
                        seconds.append(plugin.call(command, f"{containers}{plugin.name}{number % plan['rounds']}"))
                for command, seconds in times.items():
                    summary = yardsticks.summary(seconds)
                    base_ms = statistics.median(quiet[plugin.name, command]) * 1000
                    ratios = {"p99_to_quiet_median": round(summary["p99_ms"] / base_ms, 2)}
                    yardsticks.report(f"cni.churn100.{command}.{plugin.name}", **ratios, **summary)
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
                plugins = [
                    *(ours(f"calico-{store}-{shim}", install_plugin(host, shim, "--shim", shim)) for shim in _shims()),
                    _reference("ptp", {"ipMasq": False}),
                    _reference("bridge", {"isGateway": True, "bridge": "br-bench"}),
                ]
                names = [f"{plugin['name']}{number}" for plugin in plugins for number in range(max(rounds, 100))]
                plan = {
                    "rounds": rounds,
                    "bursts": bursts,
                    "churn_rounds": max(rounds, 100),
                    "containers": prefix,
                    "plugins": plugins,
                    "url": host.environment["CALICO_DATASTORE"],
                }
                with namespaces.named(f"{prefix}{name}" for name in [*names, "w"]):
                    run_inside(host, __file__, plan, timeout_s=900)


def _shims() -> tuple[str, ...]:
    return ("compiled", "python") if shutil.which("cc") else ("python",)


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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--bursts", type=int, default=5)
    parser.add_argument("--store", choices=["sqlite", "etcd"], action="append", help="only this one")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--churn", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.churn:
        churn(arguments.churn)
        return 0
    if arguments.inside:
        inside(json.load(sys.stdin))
        return 0
    if os.geteuid() != 0 or not (REFERENCE / "ptp").exists():
        sys.stderr.write("needs root and the package containernetworking-plugins\n")
        return 2
    try:
        outside(arguments.rounds, arguments.bursts, tuple(arguments.store or ("sqlite", "etcd")))
    finally:
        for name in ("ptp", "bridge"):
            subprocess.run(["rm", "-rf", f"/run/calico-bench-{name}"], check=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
