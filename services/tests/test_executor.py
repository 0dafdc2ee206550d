import asyncio
import threading
from collections.abc import Iterator

import pytest

from vlmpress_services.errors import OverloadedError
from vlmpress_services.serving.executor import BoundedExecutor


async def test_calls_run_in_one_other_thread() -> None:
    executor = BoundedExecutor("test")
    names = {await executor.run(threading.get_ident) for _ in range(3)}
    assert len(names) == 1
    assert threading.get_ident() not in names
    executor.close()


async def test_more_than_max_pending_are_refused() -> None:
    executor = BoundedExecutor("test", max_pending=2)
    release = threading.Event()
    held = [asyncio.create_task(executor.run(release.wait)) for _ in range(2)]
    await asyncio.sleep(0.05)
    with pytest.raises(OverloadedError, match="2 calls"):
        await executor.run(int)
    release.set()
    await asyncio.gather(*held)
    assert await executor.run(int) == 0
    executor.close()


async def test_a_stream_gives_items_in_order_and_the_error_at_its_end() -> None:
    def produce() -> Iterator[int]:
        yield 1
        yield 2
        raise ValueError("no three")

    executor = BoundedExecutor("test")
    stream = executor.stream(produce)
    assert [await anext(stream), await anext(stream)] == [1, 2]
    with pytest.raises(ValueError, match="no three"):
        await anext(stream)
    executor.close()


async def test_a_closed_stream_stops_at_the_next_item_and_frees_its_place() -> None:
    made = []
    go_on = threading.Semaphore(0)

    def produce() -> Iterator[int]:
        for number in range(1000):
            made.append(number)
            yield number
            go_on.acquire()

    executor = BoundedExecutor("test", max_pending=1)
    stream = executor.stream(produce)
    assert await anext(stream) == 0
    await stream.aclose()
    go_on.release()
    for _ in range(100):
        await asyncio.sleep(0.01)
        try:
            assert await executor.run(int) == 0
            break
        except OverloadedError:
            continue
    assert made == [0, 1]
    executor.close()


async def test_the_event_loop_runs_on_while_a_model_works() -> None:
    def busy() -> None:
        release.wait(5)

    release = threading.Event()
    executor = BoundedExecutor("test")
    work = asyncio.create_task(executor.run(busy))
    await asyncio.sleep(0.05)
    assert not work.done()
    release.set()
    await work
    executor.close()
