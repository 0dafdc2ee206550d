"""Chooses where work runs: in this process or on Ray; the results are the same."""

from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec

from vlmpress.cli import UserError
from vlmpress_services.workers.runners import LocalRunner, Runner


def open_runner(name: str, num_cpus: int = 1) -> AbstractContextManager[Runner]:
    """A runner for the length of a block; "auto" is Ray when it is installed.

    Args:
        name: "ray", "local" or "auto".
        num_cpus: Cores that a cluster of this process's own has at least, whatever the machine has.

    Raises:
        UserError: Ray was asked for and is not installed.
    """
    has_ray = find_spec("ray") is not None
    if name == "local" or (name == "auto" and not has_ray):
        return nullcontext(LocalRunner())
    if not has_ray:
        raise UserError("runner ray: expected Ray to be installed (pip install 'vlmpress-services[ray]')")
    # Ray takes a second to import; who runs locally does not pay for it.
    from vlmpress_services.workers.ray_runner import ray_runner

    return ray_runner(num_cpus)
