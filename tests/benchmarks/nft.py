"""The program ``nft``, which what we do to our table is measured beside."""

from __future__ import annotations

import subprocess
import tempfile
import time

TABLE = ("inet", "calico")


def nft(*argv: str, namespace: str | None = None, stdin: str | None = None) -> str:
    """As a child. ``namespace``: a name; None is where we are."""
    enter = ["nsenter", f"--net=/var/run/netns/{namespace}"] if namespace else []
    return subprocess.run([*enter, "nft", *argv], check=True, capture_output=True, text=True, input=stdin).stdout


def yardstick(*, rounds: int = 3, namespace: str | None = None, into: str | None = None) -> dict[str, float]:
    """Seconds of ``nft list`` of our table as text, and of ``nft -f`` of that text, which takes the place of what
    stands. ``into``: the namespace where it does."""
    text = ""
    listing, loading = [], []
    for _ in range(rounds):
        started = time.perf_counter()
        text = nft("list", "table", *TABLE, namespace=namespace)
        listing.append(time.perf_counter() - started)
    name = " ".join(TABLE)
    with tempfile.NamedTemporaryFile("w", suffix=".nft") as file:
        file.write(f"add table {name}\ndelete table {name}\n{text}")
        file.flush()
        for _ in range(rounds):
            started = time.perf_counter()
            nft("-f", file.name, namespace=into)
            loading.append(time.perf_counter() - started)
    return {"list_s": round(min(listing), 5), "load_s": round(min(loading), 5), "lines": text.count("\n")}
