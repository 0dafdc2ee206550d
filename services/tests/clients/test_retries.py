import json

import pytest

from vlmpress_services.clients.retries import Breaks, is_repeatable, service_config, services
from vlmpress_services.errors import ServiceError


def test_all_services_are_known() -> None:
    from vlmpress_services.serving.registry import SERVICES

    assert {service.full_name for service in services()} == set(SERVICES.values())


def test_exactly_what_the_contract_lets_repeat_is_repeated() -> None:
    (group,) = json.loads(service_config())["methodConfig"]
    names = {(name["service"], name["method"]) for name in group["name"]}
    assert names == {
        (service.full_name, method.name)
        for service in services()
        for method in service.methods
        if is_repeatable(method)
    }
    assert ("vlmpress.evaluation.v1.EvaluationService", "ScorePredictions") in names
    assert ("vlmpress.artifact.v1.ArtifactService", "GetManifest") in names
    assert ("vlmpress.artifact.v1.ArtifactService", "WriteFile") not in names
    assert ("vlmpress.artifact.v1.ArtifactService", "CollectGarbage") not in names
    assert group["retryPolicy"]["retryableStatusCodes"] == ["UNAVAILABLE", "CANCELLED"]


def test_pauses_grow_and_end() -> None:
    away = ServiceError("UNAVAILABLE", "away")
    breaks = Breaks(max_first=2, max_in_row=5, first_s=0.1, longest_s=0.5)
    for limits in ((0.1, 0.2), (0.1, 0.2, 0.4, 0.5, 0.5), (0.1, 0.2, 0.4, 0.5, 0.5)):
        for longest_s in limits:
            assert longest_s / 2 <= breaks.pause_s(away) <= longest_s
        with pytest.raises(ServiceError, match="away"):
            breaks.pause_s(away)
        breaks.reset()


def test_a_stream_waits_for_a_server_that_is_started_again() -> None:
    breaks = Breaks()
    breaks.reset()
    assert sum(breaks.pause_s(ServiceError("UNAVAILABLE", "away")) for _ in range(16)) > 60


def test_a_server_that_sheds_load_is_asked_when_it_says() -> None:
    assert Breaks().pause_s(ServiceError("RESOURCE_EXHAUSTED", "busy", retry_after_s=3.0)) == 3.0
    with pytest.raises(ServiceError, match="large"):
        Breaks().pause_s(ServiceError("RESOURCE_EXHAUSTED", "too large"))


@pytest.mark.parametrize("code", ["NOT_FOUND", "DATA_LOSS", "INTERNAL", "UNAUTHENTICATED", "DEADLINE_EXCEEDED"])
def test_other_errors_are_final(code: str) -> None:
    with pytest.raises(ServiceError, match=code):
        Breaks().pause_s(ServiceError(code, "why"))
