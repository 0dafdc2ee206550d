"""The clients of the services for asyncio, by the same names."""

from vlmpress_services.clients.aio.artifact import ArtifactClient
from vlmpress_services.clients.aio.edgevlm import EdgeVlmClient
from vlmpress_services.clients.aio.evaluation import EvaluationClient
from vlmpress_services.clients.aio.job import JobClient

__all__ = ["ArtifactClient", "EdgeVlmClient", "EvaluationClient", "JobClient"]
