"""Changes the labels of an endpoint on command, from inside a host: ``label_writer.py ENDPOINT``.

Each line on standard input is a role; the answer is the monotonic time just before the write.
"""

from __future__ import annotations

import os
import sys
import time

import msgspec

from calico_core.model.keys import HOSTS, WorkloadEndpointKey
from calico_core.node.composition import open_records
from calico_core.settings import load_settings


def main() -> None:
    records = open_records(load_settings(os.environ))
    found = next(
        record
        for record in records.list(HOSTS)
        if isinstance(record.key, WorkloadEndpointKey) and record.key.endpoint == sys.argv[1]
    )
    for line in sys.stdin:
        current = records.get(found.key)
        assert current is not None
        changed = msgspec.structs.replace(current.record, labels={"role": line.strip()})
        started = time.monotonic()
        records.swap(current, changed)
        sys.stdout.write(f"{started!r}\n")
        sys.stdout.flush()
    records.store.close()


main()
