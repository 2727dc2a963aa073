"""Decoding in several threads. msgspec builds what it knows of a class at first use and takes no lock for it: the
classes are built beforehand, or the interpreter crashes now and then."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys, threading
from calico_core.model import codec, keys
from calico_core.model.addresses import parse_network
sys.setswitchinterval(1e-6)
block = keys.BlockKey(parse_network("10.0.0.0/30"))
cases = [
    (block, b'{"cidr":"10.0.0.0/30","allocations":[0,null,null,null],"attributes":[{"handle_id":"h"}]}'),
    (keys.WorkloadEndpointKey("h", "o", "w", "e"), b'{"state":"active","name":"cali1","ipv4_nets":["10.0.0.1/32"]}'),
    (keys.ProfileRulesKey("p"), b'{"inbound_rules":[{"action":"allow","src_tag":"p"}]}'),
    (keys.PolicyKey("t", "p"), b'{"selector":"all()","inbound_rules":[{}]}'),
]
start = threading.Barrier(8)
def work():
    start.wait()
    for key, value in cases * 20:
        codec.decode(key, value)
threads = [threading.Thread(target=work) for _ in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print("done")
"""


def test_threads_that_decode_first_at_the_same_moment() -> None:
    for _ in range(10):
        done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False, timeout=60)
        assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


def test_classes_of_strangers_are_built_too() -> None:
    script = (
        "import msgspec; from calico_core.model import codec\n"
        "class Mine(msgspec.Struct):\n    a: int\n"
        "codec.build_types()\n"
        "hits = codec._decoder.cache_info().hits; codec._decoder(Mine)\n"
        "print(codec._decoder.cache_info().hits - hits)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "1\n"
