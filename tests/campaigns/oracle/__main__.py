"""``nox -s oracle -- --cases N --seed S --dataplane nftables|iptables``: the packet oracle.

Its last line is ``N verdicts, M differ``; it exits with 1 unless M is 0. Each case is a datastore and some packets,
drawn at random (:mod:`cases`), and three opinions of every packet (:mod:`campaign`). A case that differs is made as
small as it can be (as it was drawn, if it does not differ again), printed, and written to a file that ``--replay FILE``
asks again.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path

from tests.campaigns.oracle.bench import DRIVERS
from tests.campaigns.oracle.campaign import replay, run
from tests.command_line import json_file, positive, require_root


def main() -> int:
    parser = argparse.ArgumentParser(prog="oracle", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cases", type=positive, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--dataplane", choices=sorted(DRIVERS), default="nftables")
    parser.add_argument("--replay", type=json_file, metavar="FILE", help="ask the one case of this file")
    parser.add_argument("--write-to", type=Path, default=Path("oracle-case.json"), help="where a differing case goes")
    chosen = parser.parse_args()
    require_root(parser)
    logging.disable(logging.ERROR)
    if chosen.replay is not None:
        result = replay(chosen.replay, dataplane=chosen.dataplane)
    else:
        result = run(cases=chosen.cases, seed=chosen.seed, dataplane=chosen.dataplane)
    if result.disagreement is not None:
        case = json.dumps(result.disagreement.case, indent=1)
        chosen.write_to.write_text(case + "\n")
        print(f"{case}\n{result.disagreement}\nask it again: --replay {chosen.write_to}")
        if not result.has_repeated:
            print("it did not repeat: the same case, asked again, had other answers")
    outcomes = ", ".join(f"{count} {name}" for name, count in sorted(result.outcomes.items()))
    print(f"{chosen.dataplane}, seed {chosen.seed}: {result.seconds:.1f} s; {outcomes}")
    print(result.last_line)
    return 1 if result.differ else 0


if __name__ == "__main__":
    sys.exit(main())
