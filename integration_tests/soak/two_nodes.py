"""An evaluation on two nodes of this machine; writes what came of it as JSON.

A process of its own, for Ray's processes do not always start where another cluster has been.
"""

import argparse
import json
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from vlmpress_services.evaluating.shards import shards_of
from vlmpress_services.evaluating.spreading import answer_shards
from vlmpress_services.workers.group import TaskResources
from vlmpress_services.workers.ray_runner import RayRunner

# After our own, which keeps Ray on the loopback address.
import ray  # isort: skip
from ray.cluster_utils import Cluster  # isort: skip

LOOPBACK = "127.0.0.1"
WAIT_S = 60.0
NODE = {"node_ip_address": LOOPBACK, "include_dashboard": False, "object_store_memory": 80 << 20}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store")
    parser.add_argument("model")
    parser.add_argument("dataset")
    parser.add_argument("results", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--questions", type=int, required=True)
    parser.add_argument("--worker-kills", type=int, required=True)
    parser.add_argument("--node-kills", type=int, choices=(0, 1), required=True)
    arguments = parser.parse_args()
    head = {**NODE, "num_cpus": 1, "_system_config": {"worker_niceness": 0}}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    second = cluster.add_node(**NODE, num_cpus=2)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    try:
        arguments.out.write_text(json.dumps(_evaluate(arguments, cluster, second)))
    finally:
        ray.shutdown()
        cluster.shutdown()


def _evaluate(arguments: argparse.Namespace, cluster: Cluster, second: Any) -> dict[str, Any]:
    shards = shards_of(arguments.model, arguments.dataset, arguments.questions, 1, 4)
    kills = _moments(arguments)
    done_at: list[int] = []
    killed: list[str] = []
    num_nodes = len(ray.nodes())

    def look(done: int, total: int, note: str) -> None:
        done_at.append(done)
        for what in kills.pop(done, []):
            killed.append(_kill_worker() if what == "worker" else _kill_node(cluster, second))

    answered = answer_shards(
        arguments.store, shards, arguments.results, RayRunner(), TaskResources(max_failures=20), look
    )
    return {
        "answers": [asdict(one) for one in answered],
        "done_at": done_at,
        "killed": killed,
        "num_nodes": num_nodes,
    }


def _moments(arguments: argparse.Namespace) -> dict[int, list[str]]:
    """Numbers of finished shards after which to kill: the node half-way, workers evenly before and after it."""
    total, num_kills = arguments.questions, arguments.worker_kills
    moments: dict[int, list[str]] = {}
    for number in range(num_kills):
        moments.setdefault((number + 1) * total // (num_kills + 2), []).append("worker")
    if arguments.node_kills:
        moments.setdefault(total // 2, []).append("node")
    return moments


def _kill_worker() -> str:
    """Ends a worker that is at a shard with SIGKILL."""
    deadline_s = time.monotonic() + WAIT_S
    while time.monotonic() < deadline_s:
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                if process.cmdline()[:1] == ["ray::_plain"]:
                    process.kill()
                    return "worker"
    raise TimeoutError(f"expected a worker at a shard within {WAIT_S:g} s")


def _kill_node(cluster: Cluster, node: Any) -> str:
    cluster.remove_node(node, allow_graceful=False)
    return "node"


if __name__ == "__main__":
    main()
