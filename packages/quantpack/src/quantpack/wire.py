"""Between quantpack's classes and the protobuf messages; the only module that touches them."""

from quantpack.errors import SchemeError
from quantpack.report import PartReport
from quantpack.scheme import BITS, Granularity, Scheme
from quantpack.totals import QuantizedModel
from vlmpress.quantpack.v1 import quantpack_pb2 as pb

_GRANULARITIES: dict[Granularity, pb.Granularity] = {
    "tensor": pb.GRANULARITY_TENSOR,
    "channel": pb.GRANULARITY_CHANNEL,
    "group": pb.GRANULARITY_GROUP,
}
_NAMES = {value: name for name, value in _GRANULARITIES.items()}


def scheme_to_proto(scheme: Scheme) -> pb.Scheme:
    """The message of a scheme."""
    return pb.Scheme(
        bits=BITS,
        granularity=_GRANULARITIES[scheme.granularity],
        group_size=scheme.group_size,
        symmetric=scheme.symmetric,
    )


def scheme_from_proto(message: pb.Scheme) -> Scheme:
    """The scheme of a message.

    Raises:
        SchemeError: Another number of bits, an unknown granularity, or a group size that does not fit it.
    """
    if message.bits != BITS:
        raise SchemeError(f"scheme: expected {BITS} bits, got {message.bits}")
    if message.granularity not in _NAMES:
        raise SchemeError(f"scheme: expected granularity tensor, channel or group, got {message.granularity}")
    scheme = Scheme(granularity=_NAMES[message.granularity], group_size=message.group_size, symmetric=message.symmetric)
    if scheme.group_size != message.group_size:
        raise SchemeError(f"scheme: expected group_size 0 without granularity group, got {message.group_size}")
    return scheme


def quantized_model_to_proto(model: QuantizedModel) -> pb.QuantizedModel:
    """The message of a pack's totals."""
    return pb.QuantizedModel(
        scheme=scheme_to_proto(model.scheme),
        num_codes=model.num_codes,
        code_bytes_packed=model.code_bytes_packed,
        code_bytes_compressed=model.code_bytes_compressed,
    )


def quantized_model_from_proto(message: pb.QuantizedModel) -> QuantizedModel:
    """The totals of a message; raises SchemeError."""
    return QuantizedModel(
        scheme=scheme_from_proto(message.scheme),
        num_codes=message.num_codes,
        code_bytes_packed=message.code_bytes_packed,
        code_bytes_compressed=message.code_bytes_compressed,
    )


def part_report_to_proto(report: PartReport) -> pb.PartReport:
    """The message of a part's figures."""
    return pb.PartReport(
        part=report.part,
        num_weights=report.num_weights,
        code_bytes_packed=report.code_bytes_packed,
        code_bytes_compressed=report.code_bytes_compressed,
        cr_codes=report.cr_codes,
        bits_per_weight=report.bits_per_weight,
        bytes_on_disk=report.bytes_on_disk,
    )


def part_report_from_proto(message: pb.PartReport) -> PartReport:
    """The figures of a message."""
    return PartReport(
        part=message.part,
        num_weights=message.num_weights,
        code_bytes_packed=message.code_bytes_packed,
        code_bytes_compressed=message.code_bytes_compressed,
        cr_codes=message.cr_codes,
        bits_per_weight=message.bits_per_weight,
        bytes_on_disk=message.bytes_on_disk,
    )
