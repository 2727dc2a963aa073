"""Puts the program where the configuration of the agent's network module names it, and a sample of that configuration
beside it. Source: mesos specification 3.1 and 7.
"""

from __future__ import annotations

import importlib.resources
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

from calico_core.errors import InvalidRequest, ToolFailed
from calico_core.files import replace_file
from calico_core.trusted_directory import prepare_directory

BIN_DIRECTORY = Path("/calico")
PROGRAM = "calico_mesos"
SAMPLE = "modules.json.sample"
SOCKET = "/run/calico/node.sock"
MODULE_LIBRARY = "/usr/lib/mesos/libmesos_network_isolator.so"

_SELF_TEST_S = 10.0
_MAX_FIRST_LINE = 250  # BINPRM_BUF_SIZE in include/uapi/linux/binfmts.h, less the option and the end of the line
_MARK = b"the file that the agent's network module executes"


def install(
    bin_directory: Path = BIN_DIRECTORY, *, socket: str = SOCKET, python: str | None = None
) -> tuple[Path, ...]:
    """The files that were written; none when everything stood already.

    ``python`` serves a request in process when the node is down and must have our packages: the current one by default.
    Raises ``InvalidRequest`` for an unusable argument or directory, ``ToolFailed`` when the program does not run.
    """
    program, sample = bin_directory / PROGRAM, bin_directory / SAMPLE
    text = shim_text(socket=socket, python=python or sys.executable)
    prepare_directory(bin_directory, field="bin-dir")
    files = ((program, text, 0o755), (sample, sample_text(program), 0o644))
    written = [path for path, content, mode in files if _write(path, content, mode)]
    self_test(program)
    return tuple(written)


def uninstall(bin_directory: Path = BIN_DIRECTORY) -> tuple[Path, ...]:
    """The files that were removed. Absent is fine; a program that is not ours stays, and so does the sample then."""
    program, sample = bin_directory / PROGRAM, bin_directory / SAMPLE
    if program.exists() and not _is_ours(program):
        return ()
    removed = [path for path in (program, sample) if path.exists()]
    for path in removed:
        path.unlink(missing_ok=True)
    return tuple(removed)


def shim_text(*, socket: str, python: str) -> bytes:
    """The program, its first line and constants filled in. The first line names the interpreter's real file: a wrapper
    or the ``site`` of a virtual environment would cost more than the whole call."""
    for field, path in (("socket", socket), ("python", python)):
        if not path.startswith("/"):
            raise InvalidRequest(field, f"{path!r} is not an absolute path")
    base: str = getattr(sys, "_base_executable", "") or sys.executable
    interpreter = os.path.realpath(base)
    if any(character.isspace() for character in interpreter) or len(interpreter) > _MAX_FIRST_LINE:
        raise InvalidRequest("python", f"the kernel cannot start {interpreter!r} from a first line")
    source = importlib.resources.files("calico_mesos").joinpath("shim.py").read_text()
    for name, value in (("SOCKET", socket), ("PYTHON", python), ("RUN_DIRECTORY", str(Path(socket).parent))):
        head, line, tail = source.partition(f"\n{name} = ")
        if not line:
            raise InvalidRequest("shim", f"has no constant {name}")
        source = f"{head}{line}{json.dumps(value)}\n{tail.partition(chr(10))[2]}"
    return f"#!{interpreter} -IS\n{source}".encode()


def sample_text(program: Path) -> bytes:
    """What the agent's ``--modules`` file has to hold. The module stays silently inactive if a path does not exist."""
    parameters = [{"key": key, "value": str(program)} for key in ("isolator_command", "ipam_command")]
    modules = [
        {"name": "com_mesosphere_mesos_NetworkIsolator", "parameters": parameters},
        {"name": "com_mesosphere_mesos_NetworkHook"},
    ]
    return json.dumps({"libraries": [{"file": MODULE_LIBRARY, "modules": modules}]}, indent=2).encode() + b"\n"


def self_test(program: Path) -> None:
    """Raises ``ToolFailed`` when the program does not start."""
    argv = (str(program), "--help")
    try:
        done = subprocess.run(argv, env={}, capture_output=True, timeout=_SELF_TEST_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ToolFailed(argv, -1, str(error)) from error
    if done.returncode or not done.stdout.startswith(b"Calico for Mesos"):
        raise ToolFailed(argv, done.returncode, (done.stderr or done.stdout).decode(errors="replace"))


def _write(path: Path, content: bytes, mode: int) -> bool:
    """Whether it had to be. By rename: the program may be running."""
    if path.is_file() and path.read_bytes() == content and stat.S_IMODE(path.stat().st_mode) == mode:
        return False
    replace_file(path, content, mode)
    return True


def _is_ours(path: Path) -> bool:
    with path.open("rb") as file:
        return _MARK in file.read(1024).lower()
