"""The labels that policy sees on an endpoint: its own over those of its profiles, the last listed first among these.

The index of labels keeps the same for all endpoints at once; this is for one. Source: felix specification 4.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from calico_core.model.endpoints import WorkloadEndpoint
from calico_core.model.keys import Key, ProfileLabelsKey


def effective_labels(endpoint: WorkloadEndpoint, records: Mapping[Key, Any]) -> dict[str, str]:
    """``records``: those of profiles' labels among any others."""
    found: dict[str, str] = {}
    for profile in endpoint.profile_ids:
        found.update(records.get(ProfileLabelsKey(profile)) or {})
    return {**found, **endpoint.labels}
