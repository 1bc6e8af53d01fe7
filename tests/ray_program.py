"""A Ray cluster for tests/test_ray.py, until its input is closed: `... ADDRESS ...`, a raylet at
each (one of Ray's choice for "").

It prints the cluster's address and the raylets' ids. There is room for nothing on the first one.
"""

from __future__ import annotations

import signal
import sys

from ray.cluster_utils import Cluster

MEMORY_BYTES = 80 << 20


def main(addresses: list[str]) -> None:
    cluster = Cluster()  # of processes that die with this one
    raylets = []
    for number, address in enumerate(addresses):
        at = {"node_ip_address": address} if address else {}
        ports = {"min_worker_port": 0, "max_worker_port": 0, "include_dashboard": False}
        cpus = 4 if number else 0
        node = cluster.add_node(
            wait=False, num_cpus=cpus, object_store_memory=MEMORY_BYTES, **ports, **at
        )
        raylets += [str(found.process.pid) for found in node.all_processes["raylet"]]
    cluster.wait_for_nodes()
    signal.signal(
        signal.SIGCHLD, signal.SIG_IGN
    )  # a raylet that is killed is gone, and its workers notice
    print(cluster.address, *raylets, flush=True)
    sys.stdin.read()
    cluster.shutdown()


if __name__ == "__main__":
    main(sys.argv[1:])
