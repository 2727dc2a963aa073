"""Run on a host: every key of a datastore with its value, as one JSON object."""

from __future__ import annotations

import json
import sys

from calico_core.interfaces.datastore import DatastoreOptions
from calico_core.plugin_host.loader import load_driver
from calico_core.plugin_host.namespaces import DATASTORES

url = sys.argv[1]
store = load_driver(DATASTORES, url.partition("://")[0]).open(url, DatastoreOptions())
entries = store.list("/calico/").entries
json.dump({entry.key: entry.value.decode() for entry in entries}, sys.stdout)
store.close()
