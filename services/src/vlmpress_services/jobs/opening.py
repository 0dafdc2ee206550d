"""The places that a server has for its jobs."""

from vlmpress_services.errors import ExtraMissingError
from vlmpress_services.jobs.places import LocalPlace, Place
from vlmpress_services.serving.service import Host


def open_places(host: Host) -> dict[str, Place]:
    """Where a server's jobs can run, by name: "local", and "ray" when it has a cluster.

    Raises:
        ExtraMissingError: It has a cluster, but Ray's client is not installed.
    """
    places: dict[str, Place] = {"local": LocalPlace(host.store.root)}
    if host.jobs.cluster:
        try:
            from vlmpress_services.workers.submission import RayPlace
        except ImportError as error:
            raise ExtraMissingError(
                f"job cluster: Ray not installed ({error}); pip install 'vlmpress-services[ray-jobs]' on the server"
            ) from error
        places["ray"] = RayPlace(host.jobs.cluster, host.store.root)
    return places
