"""Puts the executables and the network list where a container runtime looks for them, and takes them away.

A runtime takes the appearance of the list for "the network is ready", so it is written last and removed first, and only
after the executables have proved that they run. Nothing written here is secret. Source: cni specification 7.2.
"""

from __future__ import annotations

import importlib.resources
import json
import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from calico_cni import compiler
from calico_cni.environment import NAME
from calico_cni.precompiled import executable_text
from calico_cni.programs import IPAM_PROGRAM, NETWORK_PROGRAM
from calico_cni.versions import NEWEST, VERSIONS, is_at_least, parse_version
from calico_core.errors import InvalidRequest, ToolFailed

BIN_DIRECTORY = Path("/opt/cni/bin")
CONFIG_DIRECTORY = Path("/etc/cni/net.d")
CONFIG_NAME = "10-calico.conflist"
NETWORK = "calico"
SOCKET = "/run/calico/node.sock"
LIST_VERSION = "1.0.0"
PROGRAMS = (NETWORK_PROGRAM, IPAM_PROGRAM)
SHIMS = ("auto", "python", "compiled")
CONFIG_SUFFIXES = (".conflist", ".conf", ".json")

_SELF_TEST_S = 10.0
_MAX_FIRST_LINE = 250  # BINPRM_BUF_SIZE in include/uapi/linux/binfmts.h, less the option and the end of the line
_MARK = b"hands the call to the node's socket"
_MARK_WITHIN = 4 << 20  # an executable that is larger is not ours


class FileState(NamedTuple):
    """``state``: ``current``, ``outdated``, ``missing``, or ``foreign`` (not written by us)."""

    path: Path
    state: str


def install(
    bin_directory: Path = BIN_DIRECTORY,
    config_directory: Path = CONFIG_DIRECTORY,
    *,
    socket: str = SOCKET,
    network: str = NETWORK,
    cni_version: str = LIST_VERSION,
    config_name: str = CONFIG_NAME,
    python: str | None = None,
    interpreter: str | None = None,
    shim: str = "auto",
    has_port_mappings: bool = False,
    configuration: bytes | None = None,
    old_config_name: str = "",
) -> tuple[Path, ...]:
    """The files that were written; none when everything stood already.

    ``configuration``: the list's text in place of the one that ``network``, ``cni_version`` and
    ``has_port_mappings`` describe. ``old_config_name``: a list of an earlier installation, removed once ours stands.

    ``shim``: ``compiled`` needs a C compiler, ``python`` none; ``auto`` is compiled where that works.

    ``python`` runs a call in process when the node is down and must have our packages: the current one by default.
    ``interpreter`` runs the executables and needs nothing but its standard library: by default the one below that.
    Raises ``InvalidRequest`` for an unusable argument or directory, ``ToolFailed`` when the self-test fails; then the
    list is not written.
    """
    text = shim_text(socket=socket, python=python or sys.executable, interpreter=interpreter)
    if configuration is None:
        configuration = list_text(network, cni_version, has_port_mappings=has_port_mappings)
    _check_config_name(config_name)
    _check_old_name(old_config_name, config_name)
    for directory in (bin_directory, config_directory):
        _prepare_directory(directory)
    if shim == "auto" and interpreter is not None:
        shim = "python"  # that is what an interpreter is for
    program = _program(shim, text, bin_directory, socket=socket, python=python or sys.executable)
    written = [path for path in _paths(bin_directory) if _write(path, program, 0o755)]
    for path in _paths(bin_directory):
        self_test(path)
    target = config_directory / config_name
    if _write(target, configuration, 0o600):
        written.append(target)
    if old_config_name:
        (config_directory / old_config_name).unlink(missing_ok=True)
    return tuple(written)


def uninstall(
    bin_directory: Path = BIN_DIRECTORY,
    config_directory: Path = CONFIG_DIRECTORY,
    *,
    config_name: str = CONFIG_NAME,
) -> tuple[Path, ...]:
    """The files that were removed. Absent is fine; executables that are not ours stay."""
    _check_config_name(config_name)
    removed = []
    for path in (config_directory / config_name, *_paths(bin_directory)):
        if path.suffix not in CONFIG_SUFFIXES and not _is_ours(path):
            continue
        try:
            path.unlink()
        except FileNotFoundError:
            continue
        removed.append(path)
    return tuple(removed)


def states(
    bin_directory: Path = BIN_DIRECTORY,
    config_directory: Path = CONFIG_DIRECTORY,
    *,
    socket: str = SOCKET,
    config_name: str = CONFIG_NAME,
    python: str | None = None,
    interpreter: str | None = None,
) -> tuple[FileState, ...]:
    """What :func:`install` with the same arguments would find."""
    text = shim_text(socket=socket, python=python or sys.executable, interpreter=interpreter)
    build = compiler.build_mark(socket=socket, python=python or sys.executable)
    found = [FileState(path, _state(path, text, build)) for path in _paths(bin_directory)]
    target = config_directory / config_name
    found.append(FileState(target, "current" if target.is_file() else "missing"))
    return tuple(found)


def shim_text(*, socket: str, python: str, interpreter: str | None = None) -> bytes:
    """The executable, its first line and constants filled in.

    The first line names the interpreter itself: a wrapper in front of it, or the ``site`` of a virtual environment,
    would cost more than the whole call.
    """
    chosen = interpreter or base_interpreter()
    for field, path in (("socket", socket), ("python", python), ("interpreter", chosen)):
        if not path.startswith("/"):
            raise InvalidRequest(field, f"{path!r} is not an absolute path")
    if any(character.isspace() for character in chosen) or len(chosen) > _MAX_FIRST_LINE:
        raise InvalidRequest("interpreter", f"the kernel cannot start {chosen!r} from a first line")
    source = importlib.resources.files("calico_cni").joinpath("shim.py").read_text()
    for name, value in (("SOCKET", socket), ("PYTHON", python), ("RUN_DIRECTORY", str(Path(socket).parent))):
        head, line, tail = source.partition(f"\n{name} = ")
        if not line:
            raise InvalidRequest("shim", f"has no constant {name}")
        source = f"{head}{line}{json.dumps(value)}\n{tail.partition(chr(10))[2]}"
    return executable_text(source, interpreter=chosen, name=NETWORK_PROGRAM)


def _program(shim: str, text: bytes, bin_directory: Path, *, socket: str, python: str) -> bytes:
    """What is to be installed under both names. A compiled one that stands already is not built again."""
    if shim not in SHIMS:
        raise InvalidRequest("shim", f"{shim!r} is not one of {', '.join(SHIMS)}")
    if shim == "python":
        return text
    build = compiler.build_mark(socket=socket, python=python)
    for path in _paths(bin_directory):
        if _state(path, text, build) == "current" and build in (standing := path.read_bytes()):
            return standing
    try:
        program = compiler.compile_shim(socket=socket, python=python)
        _try_out(program)
    except ToolFailed:
        if shim == "compiled":
            raise
        return text
    return program


def _try_out(program: bytes) -> None:
    with tempfile.TemporaryDirectory(prefix="calico-shim-") as folder:
        path = Path(folder, NETWORK_PROGRAM)
        _write(path, program, 0o755)
        self_test(path)


def base_interpreter() -> str:
    """The real file of the interpreter that runs this, outside any virtual environment."""
    base: str = getattr(sys, "_base_executable", "") or sys.executable
    return os.path.realpath(base)


def list_text(network: str, cni_version: str, *, has_port_mappings: bool = False) -> bytes:
    """The network list: our plugin, and ``portmap`` after it if asked for."""
    if not NAME.fullmatch(network):
        raise InvalidRequest("network", f"{network!r} may hold only letters, digits, '_', '.' and '-'")
    if not is_at_least(parse_version(cni_version, field="cni_version"), "0.3.0"):
        raise InvalidRequest("cni_version", f"lists came with 0.3.0; give one of {', '.join(VERSIONS[2:])}")
    plugins: list[dict[str, object]] = [
        {"type": NETWORK_PROGRAM, "ipam": {"type": IPAM_PROGRAM}, "capabilities": {"ips": True, "mac": True}}
    ]
    if has_port_mappings:
        plugins.append({"type": "portmap", "snat": True, "capabilities": {"portMappings": True}})
    shape = {"cniVersion": cni_version, "name": network, "plugins": plugins}
    return (json.dumps(shape, indent=2) + "\n").encode()


def self_test(path: Path) -> None:
    """Run VERSION as a runtime would. Raises ``ToolFailed``."""
    argv = (str(path),)
    try:
        done = subprocess.run(
            argv,
            env={"CNI_COMMAND": "VERSION"},
            input=b'{"cniVersion":"%s"}' % NEWEST.encode(),
            capture_output=True,
            timeout=_SELF_TEST_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ToolFailed(argv, -1, str(error)) from error
    try:
        supported = json.loads(done.stdout)["supportedVersions"]
    except (ValueError, KeyError, TypeError):
        supported = None
    if done.returncode or supported != list(VERSIONS):
        raise ToolFailed(argv, done.returncode, (done.stderr or done.stdout).decode(errors="replace"))


def _paths(bin_directory: Path) -> tuple[Path, ...]:
    return tuple(bin_directory / program for program in PROGRAMS)


def _check_config_name(name: str) -> None:
    if "/" in name or name.startswith(".") or not name.endswith(CONFIG_SUFFIXES[0]):
        raise InvalidRequest("config_name", f"{name!r} is not a file name that ends with {CONFIG_SUFFIXES[0]}")


def _check_old_name(name: str, config_name: str) -> None:
    if name and ("/" in name or name.startswith(".") or not name.endswith(CONFIG_SUFFIXES)):
        raise InvalidRequest("old_config_name", f"{name!r} does not end with one of {', '.join(CONFIG_SUFFIXES)}")
    if name and name == config_name:
        raise InvalidRequest("old_config_name", f"{name!r} is the list that is to be installed")


def _prepare_directory(directory: Path) -> None:
    """Made when missing. Who can replace files in it would run as root at the next container start."""
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    mode = directory.lstat().st_mode
    if stat.S_ISLNK(mode):
        raise InvalidRequest("directory", f"{directory} is a symbolic link: give its target")
    if not stat.S_ISDIR(mode):
        raise InvalidRequest("directory", f"{directory} is not a directory")
    if mode & stat.S_IWOTH:
        raise InvalidRequest("directory", f"{directory} is writable by everybody: chmod o-w it")


def _write(path: Path, content: bytes, mode: int) -> bool:
    """Whether it had to be. By rename: an executable may be running, and a reader sees the old file or the new one."""
    if _is_same(path, content, mode):
        return False
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        Path(temporary).rename(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return True


def _is_same(path: Path, content: bytes, mode: int) -> bool:
    try:
        found = path.lstat()
        return stat.S_ISREG(found.st_mode) and stat.S_IMODE(found.st_mode) == mode and path.read_bytes() == content
    except FileNotFoundError:
        return False


def _state(path: Path, text: bytes, build: bytes) -> str:
    if not path.exists():
        return "missing"
    if _is_same(path, text, 0o755) or _is_build(path, build):
        return "current"
    return "outdated" if _is_ours(path) else "foreign"


def _is_build(path: Path, build: bytes) -> bool:
    """The compiled shim of this very source for this very place."""
    found = path.lstat()
    return stat.S_ISREG(found.st_mode) and stat.S_IMODE(found.st_mode) == 0o755 and build in _head(path)


def _is_ours(path: Path) -> bool:
    return _MARK in _head(path).lower()


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MARK_WITHIN)
    except OSError:
        return b""
