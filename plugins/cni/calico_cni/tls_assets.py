"""Certificates and keys from a secret, copied to where a network list can name them. Source: cni specification 7.2."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

from calico_cni.placed_files import write_file
from calico_core.errors import InvalidRequest
from calico_core.trusted_directory import prepare_directory

DIRECTORY = "calico-tls"

# variable of the template's place-holder → file of the secret
_NAMED: Mapping[str, str] = {
    "CNI_CONF_ETCD_CA": "etcd-ca",
    "CNI_CONF_ETCD_CERT": "etcd-cert",
    "CNI_CONF_ETCD_KEY": "etcd-key",
}


def copy_assets(source: Path, config_directory: Path, *, root: Path) -> tuple[Path, ...]:
    """The copies that had to be written, readable for their owner only. Hidden files are a secret's own bookkeeping."""
    files = _files(source)
    target = config_directory / DIRECTORY
    if not files:
        return ()
    prepare_directory(target, 0o700, root=root)
    return tuple(target / path.name for path in files if write_file(target / path.name, path.read_bytes(), 0o600))


def named_assets(source: Path, directory: Path) -> dict[str, str]:
    """What the place-holders stand for: the copies as they are called on the host, whose list directory is
    ``directory``."""
    present = {path.name for path in _files(source)}
    return {variable: str(directory / DIRECTORY / name) for variable, name in _NAMED.items() if name in present}


def remove_assets(config_directory: Path) -> tuple[Path, ...]:
    """Those that were removed. The directory goes with them, unless somebody keeps more than files there."""
    target = config_directory / DIRECTORY
    removed = []
    if target.is_dir() and not target.is_symlink():
        for path in sorted(target.iterdir()):
            if path.is_file() or path.is_symlink():
                path.unlink()
                removed.append(path)
        with contextlib.suppress(OSError):
            target.rmdir()
    return tuple(removed)


def _files(source: Path) -> list[Path]:
    """Links count as what they lead to: that is how a secret is mounted."""
    if not source.is_dir():
        raise InvalidRequest("TLS_ASSETS_DIR", f"{source} is not a directory")
    return [path for path in sorted(source.iterdir()) if not path.name.startswith(".") and path.is_file()]
