"""The host and workloads of the nftables tests, with the iptables driver on either backend."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest

from calico_core.dataplane.iptables.driver import IptablesDataplane
from calico_core.interfaces.dataplane import DataplaneOptions
from tests.integration.dataplane_nftables.conftest import Lab


class IptablesLab(Lab):
    """``dataplane`` may be closed and opened again as a restarted agent would."""

    def __init__(self, stack: contextlib.ExitStack, options: DataplaneOptions, backend: str) -> None:
        self._stack = stack
        self._count = 0
        self.options, self.backend = options, backend
        self.host = self.namespace()
        self.host.run("ip", "link", "set", "lo", "up")
        self.dataplane = self.open()
        stack.callback(self._close)

    def open(self) -> IptablesDataplane:
        return IptablesDataplane(self.options, self.host.fd, self.backend)

    def restart(self) -> None:
        self.dataplane.close()
        self.dataplane = self.open()

    def iptables(self, *argv: str, family: int = 4) -> str:
        return self.host.run(f"ip{'' if family == 4 else '6'}tables-{self.backend}", *argv)

    def save(self, *argv: str, family: int = 4) -> str:
        return self.host.run(f"ip{'' if family == 4 else '6'}tables-{self.backend}-save", *argv)

    def ipset(self, *argv: str) -> str:
        return self.host.run("ipset", *argv)


@pytest.fixture(params=["nft", "legacy"])
def make_lab(request: pytest.FixtureRequest) -> Iterator[Callable[..., IptablesLab]]:
    with contextlib.ExitStack() as stack:

        def make(**options: object) -> IptablesLab:
            return IptablesLab(stack, DataplaneOptions(**options), request.param)  # type: ignore[arg-type]

        yield make


@pytest.fixture
def lab(make_lab: Callable[..., IptablesLab]) -> IptablesLab:
    return make_lab()
