import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc
import pytest

from vlmpress.edgevlm.v1 import edgevlm_service_pb2 as edge
from vlmpress.edgevlm.v1 import edgevlm_service_pb2_grpc
from vlmpress.job.v1 import job_pb2, job_service_pb2_grpc
from vlmpress.job.v1 import job_service_pb2 as pb
from vlmpress_services.clients import Answer, EdgeVlmClient, GeneratedToken, JobClient, Sampling, Turn, aio
from vlmpress_services.errors import InvalidRequestError, ServiceError

both = pytest.mark.parametrize("client", ["sync", "aio"])


class Jobs(job_service_pb2_grpc.JobServiceServicer):
    """One job of ten changes; a watch breaks after every third, or `hangs` there. Five jobs, two on a page."""

    def __init__(self, failing: Any, hangs: bool = False) -> None:
        self._failing = failing
        self._hangs = hangs
        self.asked_from: list[Any] = []

    async def WatchJob(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        if request.job_id != "it":
            await self._failing(context, grpc.StatusCode.NOT_FOUND, "no such job")
        self.asked_from.append(request.revision)
        for revision in range(request.revision + 1, 11):
            yield pb.WatchJobResponse(job=job_pb2.Job(job_id="it", revision=revision))
            if revision % 3 == 0:
                if self._hangs:
                    await asyncio.Event().wait()
                await self._failing(context, grpc.StatusCode.UNAVAILABLE, "stopping")

    async def ReadJobLog(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        """Two attempts that print ten bytes each; the stream breaks after every third byte."""
        self.asked_from.append((request.attempt, request.offset))
        attempt, num_sent = request.attempt or 1, 0
        for number in range(attempt, 3):
            for offset in range(request.offset if number == attempt else 0, 10):
                if num_sent == 3:
                    await self._failing(context, grpc.StatusCode.UNAVAILABLE, "stopping")
                yield pb.ReadJobLogResponse(attempt=number, offset=offset, data=b"%d" % offset)
                num_sent += 1

    async def ListJobs(self, request: Any, context: Any) -> Any:  # noqa: N802
        first = int(request.page_token or "0")
        jobs = [job_pb2.Job(job_id=str(number)) for number in range(first, min(first + 2, 5))]
        return pb.ListJobsResponse(jobs=jobs, next_page_token=str(first + 2) if first + 2 < 5 else "")


@pytest.fixture
def serve_jobs(listen: Any) -> Any:
    def run(jobs: Jobs, port: int = 0) -> Any:
        return listen(lambda server: job_service_pb2_grpc.add_JobServiceServicer_to_server(jobs, server), port=port)

    return run


async def watch(address: str, client: str, job: str = "it", revision: int = 0) -> list[int]:
    if client == "aio":
        async with aio.JobClient(address) as jobs:
            return [seen.revision async for seen in jobs.watch(job, revision)]

    def ask() -> list[int]:
        with JobClient(address) as jobs:
            return [seen.revision for seen in jobs.watch(job, revision)]

    return await asyncio.to_thread(ask)


@both
async def test_a_watch_that_breaks_goes_on_where_it_was(serve_jobs: Any, failing: Any, client: str) -> None:
    jobs = Jobs(failing)
    async with serve_jobs(jobs) as address:
        assert await watch(address, client) == list(range(1, 11))
        assert jobs.asked_from == [0, 3, 6, 9]
        assert await watch(address, client, revision=8) == [9, 10]


async def log(address: str, client: str, *place: int) -> list[tuple[int, int]]:
    if client == "aio":
        async with aio.JobClient(address) as jobs:
            return [(piece.attempt, piece.offset) async for piece in jobs.log("it", *place, follow=True)]

    def ask() -> list[tuple[int, int]]:
        with JobClient(address) as jobs:
            return [(piece.attempt, piece.offset) for piece in jobs.log("it", *place, follow=True)]

    return await asyncio.to_thread(ask)


@both
async def test_a_log_that_breaks_goes_on_where_it_was(serve_jobs: Any, failing: Any, client: str) -> None:
    jobs = Jobs(failing)
    async with serve_jobs(jobs) as address:
        assert await log(address, client) == [(attempt, offset) for attempt in (1, 2) for offset in range(10)]
        assert jobs.asked_from == [(0, 0), (1, 3), (1, 6), (1, 9), (2, 2), (2, 5), (2, 8)]
        assert await log(address, client, 2, 7) == [(2, 7), (2, 8), (2, 9)]


@both
async def test_a_watch_outlives_its_server(serve_jobs: Any, failing: Any, client: str) -> None:
    first, second = Jobs(failing, hangs=True), Jobs(failing)
    async with serve_jobs(first) as address:
        watching = asyncio.create_task(watch(address, client))
        while not first.asked_from:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
    async with serve_jobs(second, int(address.rpartition(":")[2])):
        assert await watching == list(range(1, 11))
    assert second.asked_from[0] == 3


@both
async def test_a_watch_of_nothing_is_refused_at_once(serve_jobs: Any, failing: Any, client: str) -> None:
    async with serve_jobs(Jobs(failing)) as address:
        with pytest.raises(ServiceError, match="NOT_FOUND: no such job"):
            await watch(address, client, "other")


async def test_leaving_a_watch_ends_the_call(serve_jobs: Any, failing: Any) -> None:
    async with serve_jobs(Jobs(failing, hangs=True)) as address, aio.JobClient(address) as jobs:
        async with aclosing(jobs.watch("it")) as watched:
            async for job in watched:
                assert job.revision == 1
                break

        def leave() -> int:
            with JobClient(address) as sync:
                return next(iter(sync.watch("it"))).revision

        assert await asyncio.to_thread(leave) == 1


async def test_a_list_has_all_pages(serve_jobs: Any, failing: Any) -> None:
    async with serve_jobs(Jobs(failing)) as address, aio.JobClient(address) as jobs:
        wanted = ["0", "1", "2", "3", "4"]
        assert [job.job_id for job in await jobs.list()] == wanted
        sync = JobClient(address)
        assert [job.job_id for job in await asyncio.to_thread(sync.list)] == wanted
        await asyncio.to_thread(sync.close)


class Models(edgevlm_service_pb2_grpc.EdgeVlmServiceServicer):
    """Answers "a b", or ends as it is told to; keeps the last request."""

    def __init__(self, reason: Any = edge.FINISH_REASON_STOP) -> None:
        self._reason = reason
        self.request = edge.GenerateRequest()

    async def Generate(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        self.request = request
        for number, text in enumerate(("a", "", " b")):
            yield edge.GenerateResponse(token=edge.Token(id=number, text=text))
        if self._reason is not None:
            finish = edge.Finish(reason=self._reason, num_prompt_tokens=7, num_generated_tokens=3, text="a b")
            yield edge.GenerateResponse(finish=finish)


async def answers(address: str, client: str, **options: Any) -> tuple[list[GeneratedToken | Answer], Answer]:
    """An answer in pieces, and again as a whole."""
    arguments: Any = ("it", [b"one", b"two"], "why ?", 4)
    if client == "aio":
        async with aio.EdgeVlmClient(address) as models:
            pieces = [item async for item in models.stream(*arguments, **options)]
            return pieces, await models.generate(*arguments, **options)

    def ask() -> Any:
        with EdgeVlmClient(address) as models:
            return list(models.stream(*arguments, **options)), models.generate(*arguments, **options)

    return await asyncio.to_thread(ask)


@pytest.fixture
def serve_models(listen: Any) -> Any:
    def run(models: Models) -> Any:
        return listen(lambda server: edgevlm_service_pb2_grpc.add_EdgeVlmServiceServicer_to_server(models, server))

    return run


@both
async def test_an_answer_in_pieces_and_as_a_whole(serve_models: Any, client: str) -> None:
    models = Models()
    async with serve_models(models) as address:
        turns = (Turn(question="what ?", answer="that", num_images=1),)
        sampling = Sampling(temperature=0.5, seed=3)
        pieces, answer = await answers(address, client, history=turns, sampling=sampling, max_visual_tokens=9)
    assert pieces[:-1] == [GeneratedToken(0, "a"), GeneratedToken(1, ""), GeneratedToken(2, " b")]
    for whole in (pieces[-1], answer):
        assert isinstance(whole, Answer)
        assert (whole.text, whole.num_prompt_tokens, whole.num_generated_tokens) == ("a b", 7, 3)
        assert whole.ttft_s > 0
    assert models.request == edge.GenerateRequest(
        model="it", images=[b"one", b"two"], prompt="why ?", max_new_tokens=4, max_visual_tokens=9,
        history=[edge.Turn(question="what ?", answer="that", num_images=1)],
        sampling=edge.Sampling(temperature=0.5, top_p=1, seed=3),
    )  # fmt: skip


@both
async def test_an_answer_that_is_not_whole_is_an_error(serve_models: Any, client: str) -> None:
    async with serve_models(Models(None)) as address:
        with pytest.raises(ServiceError, match="DATA_LOSS: Generate: the stream ended without a finish event"):
            await answers(address, client)
    async with serve_models(Models(edge.FINISH_REASON_DEADLINE)) as address:
        with pytest.raises(ServiceError, match="DEADLINE_EXCEEDED"):
            await answers(address, client)


@both
async def test_no_visual_tokens_are_not_no_limit(client: str) -> None:
    with pytest.raises(InvalidRequestError, match="max_visual_tokens: expected at least 1 or None, got 0"):
        await answers("127.0.0.1:1", client, max_visual_tokens=0)
