"""systemd itself, as the service manager of one laboratory host: the units of ``node_image`` under one of their own.

The real program in its user mode, in a mount namespace where it finds the folder that says "booted with systemd".
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from calico_core.lab.host import LabHost, executable

UNITS = Path(__file__).parents[2] / "node_image"
LEFT_OUT = "ProtectSystem=no\nProtectHome=no\nPrivateTmp=no\nRuntimeDirectory=\nStateDirectory=\nLogsDirectory=\n"
"""A laboratory lies below /run, which is not the node's otherwise."""
MANAGER = """
mount --make-rprivate / && mount -t tmpfs none /run/systemd && mkdir /run/systemd/system || exit 9
exec systemd --user --log-target=console --unit={socket}
"""
WAIT_S = 60.0


class Systemd:
    """``control`` is systemctl; the unit's name is the host's own, the machine's control groups are everybody's."""

    def __init__(self, host: LabHost, folder: Path) -> None:
        self.name = f"calico-node-{host.namespace.name}"
        self._host = host
        self._folder = folder
        self.variables = folder / "node.env"
        self._environment = {**os.environ, "XDG_RUNTIME_DIR": str(folder / "run"), "XDG_CONFIG_HOME": str(folder)}

    def write_units(self) -> None:
        (self._folder / "run").mkdir(mode=0o700)
        units = self._folder / "systemd" / "user"
        units.mkdir(parents=True)
        for kind in ("socket", "service"):
            text = (UNITS / f"calico-node.{kind}").read_text().replace("calico-node.socket", f"{self.name}.socket")
            (units / f"{self.name}.{kind}").write_text(text)
            (units / f"{self.name}.{kind}.d").mkdir()
        (units / f"{self.name}.socket.d" / "lab.conf").write_text(
            f"[Socket]\nListenStream=\nListenStream={self._host.socket}\n"
        )
        self.variables.write_text("".join(f'{name}="{value}"\n' for name, value in self._host.environment.items()))
        command = " ".join(
            ("/usr/bin/nsenter", f"--net={self._host.namespace}", "--", *executable("calico-node"), "run")
        )
        (units / f"{self.name}.service.d" / "lab.conf").write_text(
            f"[Service]\nExecStart=\nExecStart={command}\nEnvironmentFile={self.variables}\n{LEFT_OUT}"
            f"StandardOutput=append:{self._host.node_log}\nStandardError=inherit\n"
        )

    def control(self, *arguments: str, check: bool = True) -> str:
        done = subprocess.run(
            ["systemctl", "--user", *arguments],
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=WAIT_S,
            check=False,
        )
        assert done.returncode == 0 or not check, done.stderr + (self._folder / "manager.log").read_text()
        return done.stdout.strip()

    @property
    def main_pid(self) -> int:
        return int(self.control("show", "--value", "--property=MainPID", f"{self.name}.service"))

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        self.write_units()
        script = MANAGER.format(socket=f"{self.name}.socket")
        with (self._folder / "manager.log").open("w") as output:
            manager = subprocess.Popen(
                ["unshare", "--mount", "sh", "-c", script],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        try:
            deadline = time.monotonic() + WAIT_S
            while self.control("is-active", f"{self.name}.socket", check=False) != "active":
                assert manager.poll() is None, (self._folder / "manager.log").read_text()
                assert time.monotonic() < deadline, (self._folder / "manager.log").read_text()
                time.sleep(0.05)
            yield
            self.control("stop", f"{self.name}.socket", f"{self.name}.service")
        finally:
            manager.terminate()
            try:
                manager.wait(WAIT_S)
            except subprocess.TimeoutExpired:
                manager.kill()
                manager.wait(WAIT_S)


def is_installed() -> bool:
    return shutil.which("systemd") is not None and Path("/run/systemd").is_dir()
