"""Python clients of the services; `clients.aio` has them for asyncio, by the same names."""

from vlmpress_services.clients.artifact import ArtifactClient
from vlmpress_services.clients.connection import Connection, find_connection
from vlmpress_services.clients.edgevlm import EdgeVlmClient
from vlmpress_services.clients.evaluation import EvaluationClient
from vlmpress_services.clients.generating import Answer, GeneratedToken, LoadedModelInfo, Sampling, Turn
from vlmpress_services.clients.job import JobClient

__all__ = [
    "Answer",
    "ArtifactClient",
    "Connection",
    "EdgeVlmClient",
    "EvaluationClient",
    "GeneratedToken",
    "JobClient",
    "LoadedModelInfo",
    "Sampling",
    "Turn",
    "find_connection",
]
