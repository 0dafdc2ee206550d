"""Tokens a second, by stage and since the last log."""

import time


class Throughput:
    """Counts tokens and the seconds they took, data loading included."""

    def __init__(self, num_stages: int) -> None:
        self._tokens = [0] * num_stages
        self._seconds_s = [0.0] * num_stages
        self._recent_tokens, self._recent_s = 0, 0.0
        self._start_s, self._own_tokens = time.perf_counter(), 0

    def start(self) -> None:
        """A step begins."""
        self._start_s = time.perf_counter()

    def read(self, num_tokens: int) -> None:
        """The step reads so many tokens on all ranks."""
        self._own_tokens = num_tokens

    def stop(self, stage: int) -> None:
        """A step of `stage` is over."""
        passed_s = time.perf_counter() - self._start_s
        self._tokens[stage] += self._own_tokens
        self._seconds_s[stage] += passed_s
        self._recent_tokens += self._own_tokens
        self._recent_s += passed_s

    def recent(self, forget: bool = False) -> float:
        """Tokens a second since the rate was last forgotten; 0 before the first step."""
        rate = self._recent_tokens / self._recent_s if self._recent_s else 0.0
        if forget:
            self._recent_tokens, self._recent_s = 0, 0.0
        return rate

    def by_stage(self) -> tuple[float | None, ...]:
        """Tokens a second of each stage; None for one without a step."""
        pairs = zip(self._tokens, self._seconds_s, strict=True)
        return tuple(tokens / seconds_s if seconds_s else None for tokens, seconds_s in pairs)
