"""CNI calls as whole processes, timed from just before the program is spawned to its end."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any


def ours(name: str, folder: Path) -> dict[str, Any]:
    """The arguments of a :class:`Plugin`, JSON-ready: the executables of ``folder`` with a network ``bench``."""
    config = {"cniVersion": "1.0.0", "name": "bench", "type": "calico", "ipam": {"type": "calico-ipam"}}
    return {"name": name, "executable": str(folder / "calico"), "path": str(folder), "config": config}


class Plugin:
    """An executable with its network configuration in a file of ``folder``, where its answers go too."""

    def __init__(self, *, name: str, executable: str, path: str, config: dict[str, Any], folder: Path) -> None:
        self.name = name
        self._executable = executable
        self._path = path
        self._config = folder / f"{name}.json"
        self._config.write_text(json.dumps(config))
        self._out = folder
        self.cpu_s: dict[str, list[float]] = {}

    def _environment(self, command: str, container: str) -> dict[str, str]:
        return {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": container,
            "CNI_NETNS": f"/run/netns/{container}",
            "CNI_IFNAME": "eth0",
            "CNI_PATH": self._path,
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        }

    def max_rss_kb(self, command: str, container: str) -> int | None:
        """Of the process and those it started, in a call of its own; None without the program ``time``. What
        ``wait4`` tells of a child has the parent's in it."""
        timer = shutil.which("time")
        if timer is None:
            return None
        with self._config.open() as config:
            done = subprocess.run(
                [timer, "-f", "%M", self._executable], stdin=config, env=self._environment(command, container),
                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=True,
            )  # fmt: skip
        return int(done.stderr.splitlines()[-1])

    def call(self, command: str, container: str) -> float:
        """Seconds of one whole process. Raises when it fails: a fast failure is no result."""
        environment = self._environment(command, container)
        out = self._out / f"{self.name}.{container}.out"
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, str(self._config), os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(out), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ]
        started = time.perf_counter()
        pid = os.posix_spawn(self._executable, [self._executable], environment, file_actions=actions)
        _, status, used = os.wait4(pid, 0)
        seconds = time.perf_counter() - started
        self.cpu_s.setdefault(command, []).append(used.ru_utime + used.ru_stime)
        if status:
            raise RuntimeError(f"{self.name} {command} {container}: status {status}: {out.read_text()}")
        return seconds
