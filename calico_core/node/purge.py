"""Taking out of the kernel all that a node put there, for a host that is to run none any more.

Every kind of dataplane that the host can have is asked, since an earlier node may have used another one; so are the
reference agents' names. Nothing in the datastore is touched. Source: felix specification 5, the clean-up tool.
"""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from calico_core.dataplane.linux.tunnels import Tunnels
from calico_core.errors import CalicoError, NotReady
from calico_core.interfaces.dataplane import Dataplane
from calico_core.log import get_logger
from calico_core.model.tunnels import HostTunnels
from calico_core.node.composition import KERNEL_DATAPLANES
from calico_core.node.dataplane_options import dataplane_options
from calico_core.node.run_lock import open_lock
from calico_core.plugin_host.loader import load_driver
from calico_core.plugin_host.namespaces import DATAPLANES
from calico_core.settings import Settings

log = get_logger(__name__)


class Purged(NamedTuple):
    """Sentences. ``failed``: what may still be there; to be tried again."""

    done: tuple[str, ...]
    failed: tuple[str, ...]


def purge_host(settings: Settings, host: str) -> Purged:
    """Safe to repeat. Raises ``NotReady`` while a node runs here: it would put it all back."""
    done: list[str] = []
    failed: list[str] = []
    with _no_node(settings.run_directory):
        for name in dict.fromkeys((*KERNEL_DATAPLANES, settings.dataplane_driver)):
            if name == "auto":
                continue
            with _gathered(failed, f"dataplane {name}"):
                driver: type[Dataplane] = load_driver(DATAPLANES, name)
                lack = driver.missing()
                if lack:
                    done.append(f"dataplane {name}: passed over: {lack}")
                    continue
                # a host that is given up is not made a router for it
                options = msgspec.structs.replace(dataplane_options(settings, host), makes_router=False)
                with contextlib.closing(driver.open(options)) as dataplane:
                    dataplane.purge()
                done.append(f"dataplane {name}: policy and routes of workloads are removed")
                done += [f"reference agent: {each} is removed" for each in driver.remove_reference()]
        with _gathered(failed, "tunnels"):
            report = Tunnels().sync(HostTunnels())
            done += [f"tunnels: {each}" for each in report.changed]
            failed += [f"tunnels: {each.subject}: {each.reason}" for each in report.failures]
        with _gathered(failed, "files"):
            Path(settings.state_directory, "interfaces.json").unlink(missing_ok=True)
    log.info("host.purged", done=len(done), failed=len(failed))
    return Purged(tuple(done), tuple(failed))


@contextlib.contextmanager
def _gathered(failed: list[str], what: str) -> Iterator[None]:
    """One part that cannot be removed does not keep the others."""
    try:
        yield
    except (CalicoError, OSError) as error:
        failed.append(f"{what}: {error}")


@contextlib.contextmanager
def _no_node(run_directory: str) -> Iterator[None]:
    """Holds the lock that a node holds while it runs."""
    with open_lock(run_directory) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            held = f"a node holds {run_directory}/node.lock"
            raise NotReady(f"{held}: stop it first, it would put everything back") from None
        yield
