"""Who may run beside whom."""

from contextlib import ExitStack

import pytest

from vlmpress_services.errors import OverloadedError
from vlmpress_services.serving.admission import Admission
from vlmpress_services.serving.methods import UNKNOWN, methods_of, other_method

METHODS = {method.name: method for method in methods_of(["job", "artifact"]).values()}
GET, LIST, WATCH, LOG = (METHODS[f"job.{name}"] for name in ("GetJob", "ListJobs", "WatchJob", "ReadJobLog"))
HEALTH = other_method("/grpc.health.v1.Health/Check")


def test_calls_and_watches_have_places_of_their_own() -> None:
    admission = Admission(2, 3, lambda name: 1 if name == "job.ListJobs" else None)
    with ExitStack() as running:
        for method in (GET, LIST, WATCH, WATCH, LOG):
            running.enter_context(admission.admitted(method))
        for method, reason in (
            (GET, "server busy: 2 calls are running"),
            (UNKNOWN, "server busy: 2 calls are running"),
            (WATCH, "server busy: 3 watches are running"),
            (LOG, "server busy: 3 watches are running"),
        ):
            with pytest.raises(OverloadedError, match=f"^{reason}$"), admission.admitted(method):
                pass
        for _ in range(9):
            running.enter_context(admission.admitted(HEALTH))
    # All places are free again, whatever became of those who asked.
    with admission.admitted(LIST):
        with pytest.raises(OverloadedError, match=r"1 calls of job\.ListJobs"), admission.admitted(LIST):
            pass
        with admission.admitted(GET), admission.admitted(WATCH):
            pass
    with pytest.raises(ValueError, match="on purpose"), admission.admitted(GET):
        raise ValueError("on purpose")
    with admission.admitted(GET), admission.admitted(GET):
        pass
