import pytest

from quantpack import Block, PartReport, QuantizedModel, Scheme, SchemeError
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
    [
        Scheme(),
        Scheme(granularity="tensor", bits=3),
        Scheme(granularity="channel", symmetric=True, axis="in"),
        Scheme(group_size=7),
        Scheme(granularity="rows", num_rows=5),
        Scheme(granularity="agq", blocks=(Block(share=0.1, group_size=32), Block(share=0.9, num_channels=4))),
    ],
    ids=str,
)
def test_scheme_round_trip(scheme: Scheme) -> None:
    assert scheme_from_proto(scheme_to_proto(scheme)) == scheme


@pytest.mark.parametrize(
    "message",
    [
        pb.Scheme(),
        pb.Scheme(bits=5, granularity=pb.GRANULARITY_TENSOR),
        pb.Scheme(bits=4),
        pb.Scheme(bits=4, granularity=9),
        pb.Scheme(bits=4, granularity=pb.GRANULARITY_GROUP),
        pb.Scheme(bits=4, granularity=pb.GRANULARITY_ROWS),
        pb.Scheme(bits=4, granularity=pb.GRANULARITY_AGQ),
        pb.Scheme(bits=4, granularity=pb.GRANULARITY_AGQ, blocks=[pb.Block(share=0.5)]),
        pb.Scheme(bits=4, granularity=pb.GRANULARITY_TENSOR, blocks=[pb.Block(share=1)]),
        pb.Scheme(bits=4, granularity=pb.GRANULARITY_TENSOR, axis=7),
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
        entropy_bits_per_code=3.1,
        bits_per_weight=4.5,
        bytes_on_disk=6,
    )
    assert part_report_from_proto(part_report_to_proto(report)) == report
