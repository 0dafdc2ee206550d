import asyncio
import threading

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
