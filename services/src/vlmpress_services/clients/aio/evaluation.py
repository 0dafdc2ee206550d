"""Has a server score answers."""

from collections.abc import Iterable

from vlmpress_services.clients.aio.channel import Client
from vlmpress_services.clients.evaluation import score_call
from vlmpress_services.scoring import Prediction, Scores


class EvaluationClient(Client):
    """Has answers scored."""

    async def score(self, predictions: Iterable[Prediction]) -> Scores:
        """Exact-match accuracy over all and by question type; raises ServiceError."""
        return await self._call(score_call(predictions))
