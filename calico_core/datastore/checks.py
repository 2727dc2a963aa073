"""What a request to any driver must be, and where a prefix ends. Every driver asks here first, so that a bad
request is refused alike whichever store is behind."""

from __future__ import annotations

from typing import TYPE_CHECKING

from calico_core.interfaces.datastore import MAX_TRANSACTION_OPERATIONS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from calico_core.interfaces.datastore import Operation, Precondition


def prefix_end(prefix: str) -> str:
    """The first key after everything under ``prefix``. Raises ``ValueError`` when it does not end with ``/``.

    >>> prefix_end("/a/b/")
    '/a/b0'
    """
    if not prefix.endswith("/"):
        raise ValueError(f"prefix {prefix!r} must end with '/'")
    return prefix[:-1] + "0"  # the character after '/'


def check_transaction(
    preconditions: Sequence[Precondition], operations: Sequence[Operation], otherwise: Sequence[str]
) -> None:
    """Raises ``ValueError`` on a key written twice, or more of anything than every store takes."""
    for name, given in (("preconditions", preconditions), ("operations", operations), ("otherwise", otherwise)):
        if len(given) > MAX_TRANSACTION_OPERATIONS:
            raise ValueError(f"{name}: {len(given)} in one transaction, at most {MAX_TRANSACTION_OPERATIONS}")
    if len(operations) < 2:
        return
    seen: set[str] = set()
    for operation in operations:
        if operation.key in seen:
            raise ValueError(f"operations: {operation.key} appears twice in one transaction")
        seen.add(operation.key)
