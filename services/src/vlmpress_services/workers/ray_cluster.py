"""The Ray cluster that work runs on; by default one started in this process."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray

OBJECT_STORE_BYTES = 100 * 2**20
LOOPBACK = "127.0.0.1"

_log = logging.getLogger(__name__)


@contextmanager
def ray_cluster(num_cpus: int = 1) -> Iterator[None]:
    """Uses the cluster RAY_ADDRESS names, else starts one in this process and ends it with the block.

    Inside another such block there is nothing to start or to end.

    Args:
        num_cpus: Cores that a cluster started here has at least, whatever the machine has.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray 2.60 warns that it will stop hiding accelerators from tasks that ask for none; we ask for none.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    else:
        ray.init(
            address="local",
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=OBJECT_STORE_BYTES,
            num_cpus=max(num_cpus, os.cpu_count() or 1),
            # Workers do the work here, so they yield to nobody; Ray would run them at niceness 15.
            _system_config={"worker_niceness": 0},
            _node_ip_address=LOOPBACK,
        )
        if ray.util.get_node_ip_address() != LOOPBACK:
            _log.warning("Ray was imported before vlmpress_services.workers: its cluster is open to the network")
    try:
        yield
    finally:
        ray.shutdown()
