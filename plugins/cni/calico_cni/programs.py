"""The two executables, by the names that network configurations call them."""

from __future__ import annotations

NETWORK_PROGRAM = "calico"
IPAM_PROGRAM = "calico-ipam"
