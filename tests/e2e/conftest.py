"""Laboratories for end-to-end tests: real nodes in network namespaces, everything gone afterwards."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator
from typing import Any

import pytest

from calico_core.lab.topology import Laboratory
from tests.e2e.observing import MakeLab

_numbers = itertools.count(1)


@pytest.fixture
def make_lab() -> Iterator[MakeLab]:
    """``make_lab(hosts, …)``: up, nodes ready, CNI installed. Options as of ``Laboratory.create``; ``nodes=False``
    leaves the nodes out."""
    with _laboratories() as make:
        yield make


@pytest.fixture(scope="module")
def make_module_lab() -> Iterator[MakeLab]:
    """The same, for a laboratory that the tests of a file share."""
    with _laboratories() as make:
        yield make


@contextlib.contextmanager
def _laboratories() -> Iterator[MakeLab]:
    if os.geteuid() != 0:
        pytest.skip("needs root: makes network namespaces")
    stack = contextlib.ExitStack()

    def make(hosts: int = 1, *, nodes: bool = True, **options: Any) -> Laboratory:
        name = f"e{os.getpid() % 100000}-{next(_numbers)}"
        lab = Laboratory.create(name, hosts, **{"routing": "none", **options})
        stack.callback(lab.down)
        lab.up()
        for host in lab.hosts if nodes else ():
            host.start_node()
            host.install_cni()
        return lab

    with stack:  # each is taken down, whatever becomes of the others
        yield make
