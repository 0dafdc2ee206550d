import pytest

from quantpack import PartReport, QuantizedModel, Scheme, SchemeError
from quantpack.wire import (
    part_report_from_proto,
    part_report_to_proto,
    quantized_model_from_proto,
    quantized_model_to_proto,
    scheme_from_proto,
    scheme_to_proto,
)
from vlmpress.quantpack.v1 import quantpack_pb2 as pb


@pytest.mark.parametrize(
    "scheme",
    [Scheme(), Scheme(granularity="tensor"), Scheme(granularity="channel", symmetric=True), Scheme(group_size=7)],
    ids=str,
)
def test_scheme_round_trip(scheme: Scheme) -> None:
    assert scheme_from_proto(scheme_to_proto(scheme)) == scheme


@pytest.mark.parametrize(
    "message",
    [
        pb.Scheme(),
        pb.Scheme(bits=3, granularity=pb.GRANULARITY_TENSOR),
        pb.Scheme(bits=4),
        pb.Scheme(bits=4, granularity=9),
        pb.Scheme(bits=4, granularity=pb.GRANULARITY_GROUP),
        pb.Scheme(bits=4, granularity=pb.GRANULARITY_CHANNEL, group_size=64),
    ],
    ids=str,
)
def test_schemes_that_do_not_exist_are_refused(message: pb.Scheme) -> None:
    with pytest.raises(SchemeError, match="expected"):
        scheme_from_proto(message)


def test_quantized_model_round_trip() -> None:
    model = QuantizedModel(scheme=Scheme(), num_codes=11, code_bytes_packed=6, code_bytes_compressed=20)
    assert quantized_model_from_proto(quantized_model_to_proto(model)) == model


def test_part_report_round_trip() -> None:
    report = PartReport(
        part="vision",
        num_weights=10,
        code_bytes_packed=5,
        code_bytes_compressed=4,
        cr_codes=1.25,
        bits_per_weight=4.5,
        bytes_on_disk=6,
    )
    assert part_report_from_proto(part_report_to_proto(report)) == report
