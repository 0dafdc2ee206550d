"""Many callers in a process of their own: overload.py ADDRESS PATH CALLERS SECONDS < request; prints JSON."""

import asyncio
import json
import random
import sys
import time
from collections import Counter

import grpc

SHARES = ("0.5", "0.99", "1")


async def overload(address: str, path: str, data: bytes, num_callers: int, seconds: float) -> None:
    """Every caller asks again at once when answered, and after about a second when refused, as it is told to.

    All of them begin in the same instant, so their first calls wait for each other, here and in the server; those are
    counted apart, as `together_s`.
    """
    codes: Counter[str] = Counter()
    together_s: list[float] = []
    refused_s: list[float] = []
    end_s = time.monotonic() + seconds

    async def ask(channel: grpc.aio.Channel) -> None:
        times_s = together_s
        while time.monotonic() < end_s:
            start_s = time.perf_counter()
            call = channel.unary_stream(path)(data, timeout=60)
            try:
                while await call.read() is not grpc.aio.EOF:
                    pass
                codes["OK"] += 1
            except grpc.aio.AioRpcError as error:
                codes[error.code().name] += 1
                times_s.append(time.perf_counter() - start_s)
                await asyncio.sleep(random.uniform(0.5, 1.5))
            times_s = refused_s

    async with grpc.aio.insecure_channel(address) as channel:
        await channel.channel_ready()
        await asyncio.gather(*(ask(channel) for _ in range(num_callers)))
    # Few bytes: nobody reads them before this process has ended.
    shown = {"codes": codes, "together_s": quantiles(together_s), "refused_s": quantiles(refused_s)}
    sys.stdout.write(json.dumps(shown))


def quantiles(times_s: list[float]) -> dict[str, float]:
    """The shares of times, by the share."""
    times_s.sort()
    return {share: times_s[min(len(times_s) - 1, int(float(share) * len(times_s)))] for share in SHARES}


if __name__ == "__main__":
    asyncio.run(overload(sys.argv[1], sys.argv[2], sys.stdin.buffer.read(), int(sys.argv[3]), float(sys.argv[4])))
