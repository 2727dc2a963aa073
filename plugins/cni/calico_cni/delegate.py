"""Runs another plugin for a part of the work: any IPAM plugin that is not ours. The only module here that starts
programs on behalf of a call.

The plugin is found and run as a runtime would do it, in the file system that the caller sees: plugins and their
libraries lie on the host, and the node may run in a container. Its answers are believed as far as they can be used, and
no further. Source: cni specification 5.7 and 7.3.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import subprocess
from collections.abc import Mapping
from typing import NamedTuple

import msgspec
from netaddr import IPAddress

from calico_cni.environment import NAME
from calico_cni.errors import DelegateFailed
from calico_cni.forwarding import forward
from calico_cni.pod_cidr import with_any_subnet
from calico_cni.results import decode_result
from calico_core.errors import CalicoError, InvalidRequest
from calico_core.interfaces.integration import Call
from calico_core.log import get_logger
from calico_core.model.endpoints import Dns

TIMEOUTS_S = {"ADD": 30.0, "DEL": 15.0}  # below the node's own, which the shim waits for
_OTHER_TIMEOUT_S = 5.0
_SEARCH_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_PASSED = "CNI_"
_ENTER = "nsenter"
_NOT_ENTERED = f"{_ENTER}: reassociate ".encode()  # CAP_SYS_CHROOT is missing, say
_NOT_EXECUTED = frozenset({126, 127})

log = get_logger(__name__)


class _Refusal(msgspec.Struct, frozen=True):
    code: int = 0
    msg: str = ""
    details: str = ""


class _Versions(msgspec.Struct, frozen=True, kw_only=True):
    supported: tuple[str, ...] = msgspec.field(default=(), name="supportedVersions")


class Delegated(NamedTuple):
    """What an ADD of another plugin has given. ``addresses``: IPv4 first."""

    addresses: tuple[IPAddress, ...]
    dns: Dns = Dns()


class Delegate:
    """One plugin for one call. Any thread."""

    def __init__(self, plugin: str, call: Call) -> None:
        """:raises InvalidRequest: ``plugin`` is no plain file name. Nothing is looked up yet."""
        if not NAME.fullmatch(plugin):
            raise InvalidRequest("ipam.type", f"{plugin!r} is not the name of a file in CNI_PATH")
        self._plugin = plugin
        self._stdin = call.stdin
        self._search = call.environment.get("CNI_PATH", "")
        self._enter_fds = () if call.mounts_fd is None or call.root_fd is None else (call.mounts_fd, call.root_fd)
        self._environment = _environment(call.environment)

    def add(self, version: str) -> Delegated:
        """A failure is followed by the plugin's DEL, so that nothing stays taken.

        :raises DelegateFailed: it failed, or its answer is of no use.
        """
        try:
            return self._delegated(self._run("ADD", self._stdin), version)
        except DelegateFailed:
            self.delete_quietly()
            raise

    def delete(self) -> None:
        """:raises DelegateFailed: nobody can say then that the addresses are free."""
        self._run("DEL", with_any_subnet(self._stdin))

    def delete_quietly(self) -> None:
        """After a failure that is the one to tell."""
        with contextlib.suppress(CalicoError):
            self.delete()

    def check(self) -> None:
        """:raises DelegateFailed:"""
        self._run("CHECK", with_any_subnet(self._stdin))

    def forward(self, command: str) -> None:
        """GC or STATUS, if the plugin knows them: those of before 1.1.0 would call them an error."""
        if "1.1.0" in self._versions():
            self._run(command, with_any_subnet(self._stdin))

    def _versions(self) -> tuple[str, ...]:
        answer = self._run("VERSION", b'{"cniVersion":"1.1.0"}')
        try:
            return msgspec.json.decode(answer, type=_Versions).supported
        except msgspec.DecodeError as error:
            raise DelegateFailed(self._plugin, f"its VERSION is not JSON: {error}") from error

    def _delegated(self, answer: bytes, version: str) -> Delegated:
        try:
            result = decode_result(answer, version)
            found = {ip.host for ip in result.ips}
        except (InvalidRequest, ValueError) as error:
            raise DelegateFailed(self._plugin, f"its result cannot be used: {error}") from error
        if not found:
            raise DelegateFailed(self._plugin, "its result has no address")
        addresses = tuple(sorted(found, key=lambda address: (address.version, address.value)))
        return Delegated(addresses, result.dns)

    def _run(self, command: str, stdin: bytes) -> bytes:
        if not self._enter_fds:
            return self._run_here(command, stdin)
        mounts, root = (f"/proc/self/fd/{each}" for each in self._enter_fds)
        for path in self._paths():
            argv = (_enter_program(), f"--mount={mounts}", f"--root={root}", "--", path)
            done = self._start(argv, command, stdin)
            if done.returncode and done.stderr.startswith(_NOT_ENTERED):
                log.warning("delegate.not_entered", reason=done.stderr.decode(errors="replace").strip())
                return self._run_here(command, stdin)
            if done.returncode not in _NOT_EXECUTED or not done.stderr.startswith(f"{_ENTER}: ".encode()):
                return self._outcome(command, done)
        raise self._not_found()

    def _run_here(self, command: str, stdin: bytes) -> bytes:
        return self._outcome(command, self._start((self._executable(),), command, stdin))

    def _start(self, argv: tuple[str, ...], command: str, stdin: bytes) -> subprocess.CompletedProcess[bytes]:
        try:
            return subprocess.run(
                argv,
                env={**self._environment, "CNI_COMMAND": command},
                input=stdin,
                capture_output=True,
                cwd="/",
                timeout=TIMEOUTS_S.get(command, _OTHER_TIMEOUT_S),
                check=False,
                pass_fds=self._enter_fds,
            )
        except subprocess.TimeoutExpired as error:
            forward(error.stderr)
            raise DelegateFailed(self._plugin, f"{command} did not end within {error.timeout:g} s") from error
        except OSError as error:
            raise DelegateFailed(self._plugin, f"cannot be started: {error.strerror}") from error

    def _outcome(self, command: str, done: subprocess.CompletedProcess[bytes]) -> bytes:
        forward(done.stderr)
        if done.returncode:
            raise self._failure(command, done)
        return done.stdout

    def _failure(self, command: str, done: subprocess.CompletedProcess[bytes]) -> DelegateFailed:
        try:
            refusal = msgspec.json.decode(done.stdout, type=_Refusal)
        except (msgspec.DecodeError, UnicodeDecodeError):
            refusal = _Refusal()
        if refusal.code > 0 and refusal.msg:
            return DelegateFailed(self._plugin, refusal.msg, code=refusal.code, details=refusal.details)
        said = (done.stderr or done.stdout).decode(errors="replace").strip()[-500:]
        return DelegateFailed(self._plugin, f"{command} ended with {done.returncode}: {said or 'it said nothing'}")

    def _executable(self) -> str:
        """The first regular, executable file of that name in CNI_PATH."""
        for path in self._paths():
            try:
                mode = os.stat(path).st_mode  # noqa: PTH116
            except OSError:
                continue
            if stat.S_ISREG(mode) and mode & 0o111:
                return path
        raise self._not_found()

    def _paths(self) -> list[str]:
        """What is relative would depend on where this process stands."""
        directories = [each for each in self._search.split(":") if each.startswith("/")]
        return [os.path.join(each, self._plugin) for each in directories]  # noqa: PTH118 - text in, text out

    def _not_found(self) -> DelegateFailed:
        return DelegateFailed(self._plugin, f"is not in CNI_PATH ({self._search or 'empty'})")


def _enter_program() -> str:
    """Of this file system, whatever the caller's PATH says."""
    return shutil.which(_ENTER) or _ENTER


def _environment(caller: Mapping[str, str]) -> dict[str, str]:
    """The caller's CNI variables. A delegate must bear arguments that are not for it."""
    environment = {name: value for name, value in caller.items() if name.startswith(_PASSED)}
    arguments = environment.get("CNI_ARGS", "")
    environment["CNI_ARGS"] = f"IgnoreUnknown=1;{arguments}" if arguments else "IgnoreUnknown=1"
    environment["PATH"] = caller.get("PATH") or _SEARCH_PATH
    return environment
