"""``python -m tests.campaigns.oracle --cases N --seed S --dataplane nftables``: the packet oracle.

Random policies; for each, three opinions on some hundred packets: a naive reading of the records, the product's
evaluator, and the kernel with real packets. Exit status 1 when any two differ; a failing case is shrunk and printed.
"""

from __future__ import annotations

import argparse
import sys
import time

from tests.campaigns.oracle.campaign import run


def main() -> int:
    parser = argparse.ArgumentParser(prog="oracle", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cases", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--dataplane", choices=("nftables", "iptables"), default="nftables")
    chosen = parser.parse_args()
    started = time.monotonic()
    tally = run(cases=chosen.cases, seed=chosen.seed, dataplane=chosen.dataplane)
    for line in tally.differences:
        print(line)
    took = time.monotonic() - started
    print(f"{chosen.dataplane}, seed {chosen.seed}: {tally.cases} cases in {took:.1f} s; {tally.summary()}")
    print(f"{tally.verdicts} verdicts, {len(tally.differences)} differ")
    return 1 if tally.differences else 0


if __name__ == "__main__":
    sys.exit(main())
