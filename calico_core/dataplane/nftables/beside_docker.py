"""Living beside the Docker Engine, whose iptables rules drop whatever is forwarded and is not Docker's.

Accepting in our table does not end a packet's way: Docker's FORWARD chain still has policy DROP. Docker names the place
for others' rules, the chain DOCKER-USER. While it is there, a chain of ours is jumped to from its end, behind what the
administrator put there, and accepts what our own policy has let through. Packets to Docker's bridges return: those are
Docker's to judge. Source: docs.docker.com, "Packet filtering and firewalls".
"""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

from calico_core.dataplane.linux.netns import run_in
from calico_core.errors import ToolFailed
from calico_core.log import get_logger
from calico_core.model.interface_names import separate_prefixes
from calico_core.stopwatch import Timing

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from calico_core.dataplane.nftables.netfilter import NftSocket

CHAIN, DOCKER_CHAIN = "CALICO-DOCKER", "DOCKER-USER"
_BRIDGES = ("docker0", "docker_gwbridge", "br-+")
_COMMANDS = {4: "iptables", 6: "ip6tables"}
_LEGACY_TABLES = {4: "/proc/thread-self/net/ip_tables_names", 6: "/proc/thread-self/net/ip6_tables_names"}
_JUMP = f"-A {DOCKER_CHAIN} -j {CHAIN}"
_TIMEOUT_S = 30.0
_LOCK_WAIT_S = "10"
_NOT_FOUND, _TIMED_OUT = 127, 124

log = get_logger(__name__)


class BesideDocker:
    """One thread; the socket is the caller's. A host without Docker costs a question to the kernel, no process."""

    def __init__(
        self, socket: NftSocket, namespace_fd: int | None, *, prefixes: Collection[str], families: Sequence[int]
    ) -> None:
        self._socket, self._namespace_fd, self._families = socket, namespace_fd, families
        self.execution = Timing()
        self._rules = [
            f"-A {CHAIN} -o {bridge} -j RETURN" for bridge in _BRIDGES
        ] + [
            f"-A {CHAIN} {side} {prefix}+ -j ACCEPT" for prefix in separate_prefixes(prefixes) for side in ("-i", "-o")
        ]  # fmt: skip

    def ensure(self) -> tuple[str, ...]:
        """Make it so wherever DOCKER-USER is. What was changed, in words.

        :raises ToolFailed: iptables refused, or is not installed where its rules are.
        :raises KernelRefused: the kernel could not be asked.
        """
        changed: list[str] = []
        for program in self._programs(DOCKER_CHAIN):
            docker, ours = self._list(program, DOCKER_CHAIN), self._list(program, CHAIN)
            if not docker:
                continue
            is_right = ours[1:] == self._rules and docker.count(_JUMP) == 1
            if is_right and not _is_cut_off(docker):
                continue
            script = [f":{CHAIN} - [0:0]", *self._rules]
            script += [_JUMP.replace("-A", "-D", 1)] * docker.count(_JUMP)
            script.append(_insertion([line for line in docker if line != _JUMP]))
            self._restore(program, script)
            changed.append(f"{program} {DOCKER_CHAIN}")
            log.info("docker.let_through", program=program)
        return tuple(changed)

    def remove(self) -> None:
        """Take it all back; nothing there is fine."""
        for program in self._programs(CHAIN):
            if not self._list(program, CHAIN):
                continue
            jumps = self._list(program, DOCKER_CHAIN).count(_JUMP)
            script = [_JUMP.replace("-A", "-D", 1)] * jumps + [f":{CHAIN} - [0:0]", f"-X {CHAIN}"]
            self._restore(program, script)

    def _programs(self, chain: str) -> Iterator[str]:
        """The iptables that may have the chain: of both families and both backends."""
        for family in self._families:
            if self._socket.has_iptables_chain(family, chain):
                yield f"{_COMMANDS[family]}-nft"
            if self._has_legacy_filter(family):
                yield f"{_COMMANDS[family]}-legacy"

    def _has_legacy_filter(self, family: int) -> bool:
        def read() -> str:
            try:
                with open(_LEGACY_TABLES[family], encoding="ascii") as file:
                    return file.read()
            except OSError:
                return ""

        return "filter" in run_in(self._namespace_fd, read).split()

    def _list(self, program: str, chain: str) -> list[str]:
        """Its declaration and rules as ``-S`` writes them; empty when there is no such chain."""
        try:
            return self._run((program, "--wait", _LOCK_WAIT_S, "-S", chain)).splitlines()
        except ToolFailed as error:
            if error.code == 1:
                return []
            raise

    def _restore(self, program: str, lines: list[str]) -> None:
        argv = (f"{program}-restore", "--noflush", "--wait", _LOCK_WAIT_S)
        self._run(argv, "\n".join(("*filter", *lines, "COMMIT", "")))

    def _run(self, argv: tuple[str, ...], script: str = "") -> str:
        found = shutil.which(argv[0]) or shutil.which(argv[0].replace("-nft", "").replace("-legacy", ""))
        if found is None:
            raise ToolFailed(argv, _NOT_FOUND, "it is not installed")
        command = (found, *argv[1:])
        if self._namespace_fd is not None:
            command = ("nsenter", f"--net=/proc/self/fd/{self._namespace_fd}", *command)
        try:
            with self.execution.measure():
                done = subprocess.run(
                    command,
                    input=script,
                    capture_output=True,
                    text=True,
                    errors="replace",
                    check=False,
                    timeout=_TIMEOUT_S,
                    pass_fds=() if self._namespace_fd is None else (self._namespace_fd,),
                )
        except OSError as error:
            raise ToolFailed(argv, _NOT_FOUND, str(error)) from error
        except subprocess.TimeoutExpired as error:
            raise ToolFailed(argv, _TIMED_OUT, f"no result after {_TIMEOUT_S:g} s") from error
        if done.returncode != 0:
            raise ToolFailed(argv, done.returncode, done.stderr)
        return done.stdout


def _insertion(docker: list[str]) -> str:
    """Behind the administrator's rules, before the return that some versions of Docker end the chain with."""
    rules = docker[1:]
    if rules and rules[-1] == f"-A {DOCKER_CHAIN} -j RETURN":
        return f"-I {DOCKER_CHAIN} {len(rules)} -j {CHAIN}"
    return _JUMP


def _is_cut_off(docker: list[str]) -> bool:
    """Whether an unconditional return stands before our jump."""
    stop = f"-A {DOCKER_CHAIN} -j RETURN"
    return stop in docker and docker.index(stop) < docker.index(_JUMP)
