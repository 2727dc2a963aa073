"""One host of the laboratory for a benchmark, a part of which runs in the host's own namespace."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from calico_core.lab.host import LabHost
from calico_core.lab.topology import Laboratory

Store = Literal["etcd", "sqlite"]


@contextmanager
def a_host(name: str, datastore: Store, environment: Mapping[str, str] | None = None) -> Iterator[LabHost]:
    """Its node is not started yet, and it has no routing daemon."""
    lab = Laboratory.create(name, 1, datastore=datastore, routing="none", environment=environment)
    try:
        lab.up()
        (host,) = lab.hosts
        yield host
    finally:
        lab.down()


def install_plugin(host: LabHost, folder: str, *options: str) -> Path:
    """The executables, in a folder of their own. ``options``: of ``calicoctl cni install``."""
    target = host.directory / "cni" / folder
    host.calicoctl(*("cni", "install", *options, "--bin-dir", str(target), "--conf-dir", str(host.cni_conf_directory)))
    return target


def arguments_or_plan(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, dict[str, Any] | None]:
    """The plan in a process that :func:`run_inside` has started, None elsewhere."""
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    return arguments, json.load(sys.stdin) if arguments.inside else None


def run_inside(host: LabHost, script: str, plan: dict[str, Any], *, timeout_s: float) -> None:
    """``script`` with ``--inside`` on that host: it reads the plan and prints its lines, which are ours."""
    argv = [sys.executable, str(Path(script).resolve()), "--inside"]
    done = host.run(argv, stdin=json.dumps(plan), timeout_s=timeout_s)
    sys.stdout.write(done.stdout)
    sys.stdout.flush()
