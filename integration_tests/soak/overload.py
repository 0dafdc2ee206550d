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
    """Every caller asks again at once when answered, and after about a second when refused, as it is told to."""
    codes: Counter[str] = Counter()
    refused_s: list[float] = []
    end_s = time.monotonic() + seconds

    async def ask(channel: grpc.aio.Channel) -> None:
        while time.monotonic() < end_s:
            start_s = time.perf_counter()
            call = channel.unary_stream(path)(data, timeout=60)
            try:
                while await call.read() is not grpc.aio.EOF:
                    pass
                codes["OK"] += 1
            except grpc.aio.AioRpcError as error:
                codes[error.code().name] += 1
                refused_s.append(time.perf_counter() - start_s)
                await asyncio.sleep(random.uniform(0.5, 1.5))

    async with grpc.aio.insecure_channel(address) as channel:
        await asyncio.gather(*(ask(channel) for _ in range(num_callers)))
    refused_s.sort()
    # Few bytes: nobody reads them before this process has ended.
    refused = {share: refused_s[min(len(refused_s) - 1, int(float(share) * len(refused_s)))] for share in SHARES}
    sys.stdout.write(json.dumps({"codes": codes, "refused_s": refused}))


if __name__ == "__main__":
    asyncio.run(overload(sys.argv[1], sys.argv[2], sys.stdin.buffer.read(), int(sys.argv[3]), float(sys.argv[4])))
