"""What a server counts, for Prometheus."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import grpc
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from vlmpress_services.errors import ListenError
from vlmpress_services.serving.calls import Call

SECONDS_BUCKETS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)
Readings = Callable[[], Mapping[str, float]]


class Metrics:
    """Counters of one server; a method that does not exist counts as "unknown", so that callers cannot make series."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._readings: dict[str, _ReadingsCollector] = {}
        self._calls = self._counter("calls", "Ended calls.", "method", "code")
        self._refused = self._counter("calls_refused", "Calls refused because a limit was reached.", "method")
        self._received = self._counter("received_bytes", "Bytes of request messages.", "method")
        self._sent = self._counter("sent_bytes", "Bytes of response messages.", "method")
        self._tokens = self._counter("generated_tokens", "Tokens of answers.")
        self._seconds = Histogram(
            "vlmpress_call_seconds", "Length of calls.", ["method"], buckets=SECONDS_BUCKETS, registry=self.registry
        )
        self._first_token = Histogram(
            "vlmpress_time_to_first_token_seconds",
            "From the arrival of a question to the first token of its answer.",
            buckets=SECONDS_BUCKETS,
            registry=self.registry,
        )
        self._running = Gauge("vlmpress_calls_in_flight", "Calls that run.", ["method"], registry=self.registry)

    def began(self, call: Call) -> None:
        """Counts a call in."""
        self._running.labels(call.method.name).inc()

    def ended(self, call: Call) -> None:
        """Counts a call out."""
        name = call.method.name
        self._running.labels(name).dec()
        self._calls.labels(name, call.code.name).inc()
        self._seconds.labels(name).observe(time.monotonic() - call.start_s)
        self._received.labels(name).inc(call.received_bytes)
        self._sent.labels(name).inc(call.sent_bytes)
        if call.code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            self._refused.labels(name).inc()

    def token(self) -> None:
        """Counts a token of an answer."""
        self._tokens.inc()

    def first_token(self, seconds: float) -> None:
        """Notes how long a caller waited for the first token."""
        self._first_token.observe(seconds)

    def read(self, name: str, text: str, label: str, readings: Readings) -> None:
        """Shows what `readings` gives at the moment of a scrape, in a thread of the exporter.

        Args:
            name: Of the gauge, without "vlmpress_"; several readings may share one.
            text: What it says.
            label: What the keys of the readings are.
            readings: Values by the label's values.
        """
        if name not in self._readings:
            self._readings[name] = _ReadingsCollector(f"vlmpress_{name}", text, label)
            self.registry.register(self._readings[name])
        self._readings[name].sources.append(readings)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"vlmpress_{name}", text, labels, registry=self.registry)


class _ReadingsCollector(Collector):
    def __init__(self, name: str, text: str, label: str) -> None:
        self._name, self._text, self._label = name, text, label
        self.sources: list[Readings] = []

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """The gauge without values, so that registering it reads nothing."""
        yield GaugeMetricFamily(self._name, self._text, labels=[self._label])

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The gauge with the sum of all readings."""
        family = GaugeMetricFamily(self._name, self._text, labels=[self._label])
        values: dict[str, float] = defaultdict(float)
        for source in self.sources:
            for key, value in source().items():
                values[key] += value
        for key, value in values.items():
            family.add_metric([key], value)
        yield family


@contextmanager
def exported(metrics: Metrics, address: str) -> Iterator[str]:
    """Serves the metrics over HTTP for the length of a block and gives the address; port 0 takes a free one.

    Raises:
        ListenError: The address cannot be listened on.
    """
    host, _, port = address.rpartition(":")
    try:
        server, thread = start_http_server(int(port), host.strip("[]"), metrics.registry)
    except OSError as error:
        raise ListenError(f"metrics: {address}: cannot be listened on ({error})") from error
    try:
        yield f"{host}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
