import json
import re
from pathlib import Path

import pytest

from vlmpress_services.clients.retries import Breaks, service_config, services
from vlmpress_services.errors import ServiceError

PROTOS = Path(__file__).resolve().parents[3] / "protos/vlmpress"


def test_all_services_are_known() -> None:
    from vlmpress_services.serving.registry import SERVICES

    assert {service.full_name for service in services()} == set(SERVICES.values())


def test_exactly_what_the_contract_lets_repeat_is_repeated() -> None:
    (group,) = json.loads(service_config())["methodConfig"]
    levels: dict[tuple[str, str], str] = {}
    for file in sorted(PROTOS.glob("*/v1/*_service.proto")):
        text = file.read_text(encoding="utf-8")
        (package,), (service,) = re.findall(r"^package (.*);", text, re.M), re.findall(r"^service (\w+)", text, re.M)
        for method, level in re.findall(
            r"^  rpc (\w+)\([^{;]*(?:;|\{\s*option idempotency_level = (\w+);)", text, re.M
        ):
            levels[f"{package}.{service}", method] = level
    assert set(levels.values()) == {"", "NO_SIDE_EFFECTS", "IDEMPOTENT"}
    assert len(levels) == sum(len(service.methods) for service in services())
    names = {(name["service"], name["method"]) for name in group["name"]}
    assert names == {name for name, level in levels.items() if level}
    assert {method for _, method in levels.keys() - names} == {"WriteFile", "CollectGarbage"}
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
