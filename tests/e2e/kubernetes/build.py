"""Builds the programs of the test cluster from Go modules: ``python build.py FOLDER``.

What is there is kept. Needs Go 1.24 or newer, 450 MB and some minutes. ``--missing FOLDER`` only says what would be
built.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

MODULE = Path(__file__).parent / "programs"
PROGRAMS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kubectl")


def missing(folder: Path) -> list[str]:
    return [name for name in PROGRAMS if not os.access(folder / name, os.X_OK)]


def build(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    found = re.search(r"k8s\.io/kubernetes (v\S+)", (MODULE / "go.mod").read_text())
    assert found is not None, "go.mod does not pin Kubernetes"
    flags = f"-s -w -X k8s.io/component-base/version.gitVersion={found[1]}"  # kubelet and server compare versions
    for name in missing(folder):
        print(f"building {name} {found[1]}", flush=True)
        subprocess.run(
            ["go", "build", "-mod=readonly", "-trimpath", "-ldflags", flags, "-o", folder.resolve() / name,
             f"k8s.io/kubernetes/cmd/{name}"],
            cwd=MODULE,
            env={**os.environ, "CGO_ENABLED": "0"},
            check=True,
        )  # fmt: skip


def main() -> int:
    match sys.argv[1:]:
        case ["--missing", folder]:
            print(" ".join(missing(Path(folder))))
        case [folder] if not folder.startswith("-"):
            build(Path(folder))
        case _:
            print(__doc__)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
