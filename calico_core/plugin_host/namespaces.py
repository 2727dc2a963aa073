"""The entry-point namespaces, each beside the class it demands. The only place where the strings live."""

from __future__ import annotations

from typing import Final

from calico_core.interfaces.dataplane import Dataplane
from calico_core.interfaces.datastore import Datastore
from calico_core.interfaces.integration import Integration
from calico_core.interfaces.ipam import Ipam
from calico_core.interfaces.routing import Routing

DATASTORES: Final = "calico.datastores"
IPAM: Final = "calico.ipam"
DATAPLANES: Final = "calico.dataplanes"
ROUTING: Final = "calico.routing"
INTEGRATIONS: Final = "calico.integrations"
COMMANDS: Final = "calico.commands"
"""Click commands that integrations add to calicoctl; their type is checked by the command line, which owns click."""

DEMANDED: Final[dict[str, type]] = {
    DATASTORES: Datastore,
    IPAM: Ipam,
    DATAPLANES: Dataplane,
    ROUTING: Routing,
    INTEGRATIONS: Integration,
}
