"""The services by name, and what the protos say about each of their methods."""

import importlib
from collections.abc import Iterable
from dataclasses import dataclass

from google.protobuf.descriptor_pb2 import MethodOptions

SERVICES = {
    "artifact": "vlmpress.artifact.v1.ArtifactService",
    "job": "vlmpress.job.v1.JobService",
    "evaluation": "vlmpress.evaluation.v1.EvaluationService",
    "quantpack": "vlmpress.quantpack.v1.QuantpackService",
    "tokenreduce": "vlmpress.tokenreduce.v1.TokenReduceService",
    "stagetrain": "vlmpress.stagetrain.v1.StageTrainService",
    "verbdistill": "vlmpress.verbdistill.v1.VerbDistillService",
    "edgevlm": "vlmpress.edgevlm.v1.EdgeVlmService",
}
"""Full gRPC name of each service."""

WATCHES = ("job.WatchJob", "job.ReadJobLog")
"""Methods that follow a job to its end."""

INFRASTRUCTURE = {"/grpc.health.v1.Health/": "health", "/grpc.reflection.v1alpha.ServerReflection/": "reflection"}


@dataclass(frozen=True, slots=True)
class Method:
    """A method by its path.

    Attributes:
        path: As on the wire, "/package.Service/Method"; empty for all that do not exist.
        service: Name from `SERVICES`, "health" or "reflection"; empty where the server has no such method.
        name: "service.Method", as in configurations, logs and metrics; "unknown" for all that do not exist.
        is_read_only: Marked NO_SIDE_EFFECTS in the protos.
    """

    path: str
    service: str
    name: str
    is_read_only: bool = False

    @property
    def is_health(self) -> bool:
        """True for health checks, which are always answered."""
        return self.service == "health"

    @property
    def is_watch(self) -> bool:
        """True for calls that last as long as a job and wait most of the time."""
        return self.name in WATCHES

    @property
    def is_infrastructure(self) -> bool:
        """True for health and reflection: no service of ours, no limits by configuration."""
        return self.service in ("health", "reflection")


def methods_of(services: Iterable[str]) -> dict[str, Method]:
    """Every method of the named services by its path; needs the contracts alone, no package."""
    found: dict[str, Method] = {}
    for name in services:
        full = SERVICES[name]
        module = importlib.import_module(f"vlmpress.{name}.v1.{name}_service_pb2")
        for method in module.DESCRIPTOR.services_by_name[full.rpartition(".")[2]].methods:
            path = f"/{full}/{method.name}"
            reads = method.GetOptions().idempotency_level == MethodOptions.NO_SIDE_EFFECTS
            found[path] = Method(path, name, f"{name}.{method.name}", reads)
    return found


def other_method(path: str) -> Method:
    """A method outside our services: health or reflection."""
    (prefix, service) = next(item for item in INFRASTRUCTURE.items() if path.startswith(item[0]))
    return Method(path, service, f"{service}.{path.removeprefix(prefix)}")


UNKNOWN = Method("", "", "unknown")
"""Any method that the server does not have."""
