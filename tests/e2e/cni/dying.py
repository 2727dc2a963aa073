"""Run on a host: one call in a process of its own, as when the node is down. It dies at its Nth effect as by SIGKILL.

``python dying.py N before|after RUN_DIRECTORY PROGRAM``. An effect is a message to the kernel, a transaction of the
datastore, or the writing of a sysctl. A call with fewer effects ends as usual.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable
from typing import Any

from calico_core.dataplane.linux import sysctl
from calico_core.dataplane.linux.netlink import NetlinkSocket
from calico_core.datastore.sqlite import SqliteDatastore
from calico_core.node import oneshot
from calico_core.workload.service import WorkloadService

DIED = 77
EFFECTS = ((NetlinkSocket, "send"), (SqliteDatastore, "transact"), (sysctl, "write"))


def main() -> int:
    at, when = int(sys.argv[1]), sys.argv[2]
    del sys.argv[1:3]
    numbers = itertools.count(1)

    def dying(effect: Callable[..., Any]) -> Callable[..., Any]:
        def act(*arguments: Any, **named: Any) -> Any:
            is_last = next(numbers) == at
            if is_last and when == "before":
                os._exit(DIED)
            result = effect(*arguments, **named)
            if is_last:
                os._exit(DIED)
            return result

        return act

    attach = WorkloadService.attach

    def counted_attach(service: WorkloadService, request: Any) -> Any:
        for owner, name in EFFECTS:
            setattr(owner, name, dying(getattr(owner, name)))
        return attach(service, request)

    WorkloadService.attach = counted_attach  # type: ignore[method-assign]  # what comes before has no effects of ours
    return oneshot.main()


if __name__ == "__main__":
    sys.exit(main())
