"""What plugins that we run say on standard error, on its way to the runtime, whose user it is for.

Whoever answers a call opens a :func:`listening` block; what runs a plugin in it says what came. Source: cni
specification 5.7.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

LIMIT = 8 << 10

_heard: contextvars.ContextVar[bytearray | None] = contextvars.ContextVar("calico_cni_stderr", default=None)


@contextlib.contextmanager
def listening() -> Iterator[bytearray]:
    """The end of everything that was forwarded in the block, by this thread."""
    heard = bytearray()
    token = _heard.set(heard)
    try:
        yield heard
    finally:
        _heard.reset(token)


def forward(stderr: bytes | None) -> None:
    """Nothing where nobody listens."""
    heard = _heard.get()
    if heard is None or not stderr:
        return
    heard += stderr if stderr.endswith(b"\n") else stderr + b"\n"
    del heard[:-LIMIT]
