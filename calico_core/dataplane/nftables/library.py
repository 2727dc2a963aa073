"""libnftables in process: texts in nft's language, each one transaction.

Called through ctypes (libnftables(3)); a context keeps its netlink socket, so that no call pays for opening it or,
after a removal, for closing it. The program ``nft`` is never started.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
from functools import cache

import msgspec

from calico_core.dataplane.linux.netns import run_in
from calico_core.errors import KernelRefused

_SONAME = "libnftables.so.1"
_LOCATED = re.compile(r"^/proc/self/fd/\d+:(\d+):[\d-]+: (?:Error: )?(.*)$", re.MULTILINE)


class ScriptError(msgspec.Struct, frozen=True):
    """``line`` counts from 1; 0 when nft did not say where."""

    line: int
    reason: str


class NftLibrary:
    """A libnftables context in one network namespace. One thread at a time."""

    def __init__(self, namespace_fd: int | None = None) -> None:
        self._library = _load()
        self._context: int | None = run_in(namespace_fd, lambda: self._library.nft_ctx_new(0))
        if not self._context:
            raise KernelRefused("open libnftables", errno.ENOMEM)
        self._library.nft_ctx_buffer_output(self._context)
        self._library.nft_ctx_buffer_error(self._context)

    def run(self, script: str) -> tuple[ScriptError, ...]:
        """Carry out the script as one transaction. Empty: done; otherwise nothing was changed."""
        if self._library.nft_run_cmd_from_buffer(self._context, script.encode()) == 0:
            return ()
        reason = self._errors()
        located = self._run_located(script)
        if located is None:
            return ()
        return located or (ScriptError(0, reason),)

    def close(self) -> None:
        if self._context:
            self._library.nft_ctx_free(self._context)
            self._context = None

    def _run_located(self, script: str) -> tuple[ScriptError, ...] | None:
        """Run it again from a file: only then does nft tell lines. None: it succeeded now, a concurrent writer gone."""
        descriptor = os.memfd_create("calico-nft", os.MFD_CLOEXEC)
        try:
            with open(descriptor, "w", closefd=False) as file:
                file.write(script)
            path = f"/proc/self/fd/{descriptor}".encode()
            if self._library.nft_run_cmd_from_filename(self._context, path) == 0:
                return None
        finally:
            os.close(descriptor)
        return tuple(ScriptError(int(line), reason) for line, reason in _LOCATED.findall(self._errors()))

    def _errors(self) -> str:
        text: bytes = self._library.nft_ctx_get_error_buffer(self._context)
        return text.decode(errors="replace").strip() or "refused without a reason"


@cache
def _load() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(_SONAME)
    except OSError as error:
        raise KernelRefused("load libnftables", errno.ENOENT, f"{error}; install nftables 1.0 or later") from error
    library.nft_ctx_new.restype = ctypes.c_void_p
    library.nft_ctx_new.argtypes = [ctypes.c_uint32]
    for name in ("nft_ctx_free", "nft_ctx_buffer_output", "nft_ctx_buffer_error"):
        getattr(library, name).argtypes = [ctypes.c_void_p]
    library.nft_ctx_free.restype = None
    library.nft_ctx_get_error_buffer.argtypes = [ctypes.c_void_p]
    library.nft_ctx_get_error_buffer.restype = ctypes.c_char_p
    for name in ("nft_run_cmd_from_buffer", "nft_run_cmd_from_filename"):
        getattr(library, name).argtypes = [ctypes.c_void_p, ctypes.c_char_p]
        getattr(library, name).restype = ctypes.c_int
    return library
