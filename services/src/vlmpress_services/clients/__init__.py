"""Python clients of the services."""

from vlmpress_services.clients.artifact import ArtifactClient
from vlmpress_services.clients.edgevlm import Answer, EdgeVlmClient, LoadedModelInfo
from vlmpress_services.clients.evaluation import EvaluationClient
from vlmpress_services.clients.job import JobClient

__all__ = ["Answer", "ArtifactClient", "EdgeVlmClient", "EvaluationClient", "JobClient", "LoadedModelInfo"]
