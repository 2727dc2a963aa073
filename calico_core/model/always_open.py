"""What no policy closes: numbers that every dataplane writes down and ``calicoctl explain`` judges by.

Sources: felix specification 6.3 and 6.5; RFC 4861, RFC 2710, RFC 3810 (ICMPv6), RFC 2131, RFC 8415 (DHCP).
"""

from __future__ import annotations

NEIGHBOUR_TYPES = (130, 131, 132, 133, 135, 136, 143)
"""ICMPv6 that a workload may send to its host: multicast listeners, router solicitation, neighbours."""
DISCOVERY_TYPES = (133, 134, 135, 136)
"""ICMPv6 that a host cannot do without on a link: solicitation and advertisement of routers and neighbours. Not where
it would be forwarded: that no router does."""
DHCP_PORTS = {4: (68, 67), 6: (546, 547)}
"""By version: of the client and of the server."""
DNS_PORT = 53
METADATA = "169.254.169.254"
METADATA_PORT = 80
"""What hosts that are told of a metadata server lead there, if it is TCP from a workload."""
