"""Between quantpack's classes and the protobuf messages; the only module that touches them."""

from quantpack.errors import SchemeError
from quantpack.report import PartReport
from quantpack.scheme import Axis, Block, Granularity, Scheme
from quantpack.totals import QuantizedModel
from vlmpress.quantpack.v1 import quantpack_pb2 as pb

_GRANULARITIES: dict[Granularity, pb.Granularity] = {
    "tensor": pb.GRANULARITY_TENSOR,
    "channel": pb.GRANULARITY_CHANNEL,
    "group": pb.GRANULARITY_GROUP,
    "rows": pb.GRANULARITY_ROWS,
    "agq": pb.GRANULARITY_AGQ,
}
_GRANULARITY_NAMES = {value: name for name, value in _GRANULARITIES.items()}
_AXES: dict[Axis, pb.Axis] = {"out": pb.AXIS_OUT, "in": pb.AXIS_IN}
_AXIS_NAMES = {value: name for name, value in _AXES.items()}


def scheme_to_proto(scheme: Scheme) -> pb.Scheme:
    """The message of a scheme."""
    return pb.Scheme(
        bits=scheme.bits,
        granularity=_GRANULARITIES[scheme.granularity],
        group_size=scheme.group_size,
        num_rows=scheme.num_rows,
        blocks=[
            pb.Block(share=block.share, group_size=block.group_size, num_channels=block.num_channels)
            for block in scheme.blocks
        ],
        axis=_AXES[scheme.axis],
        symmetric=scheme.symmetric,
    )


def scheme_from_proto(message: pb.Scheme) -> Scheme:
    """The scheme of a message.

    Raises:
        SchemeError: A field that no scheme has, or one that does not fit the granularity.
    """
    if message.granularity not in _GRANULARITY_NAMES:
        known = ", ".join(_GRANULARITIES)
        raise SchemeError(f"scheme: expected granularity {known}, got {message.granularity}")
    if message.axis not in (pb.AXIS_UNSPECIFIED, *_AXIS_NAMES):
        raise SchemeError(f"scheme: expected axis out or in, got {message.axis}")
    blocks = tuple(
        Block(share=block.share, group_size=block.group_size, num_channels=block.num_channels)
        for block in message.blocks
    )
    scheme = Scheme(
        bits=message.bits,
        granularity=_GRANULARITY_NAMES[message.granularity],
        group_size=message.group_size,
        num_rows=message.num_rows,
        blocks=blocks,
        axis=_AXIS_NAMES.get(message.axis, "out"),
        symmetric=message.symmetric,
    )
    if (scheme.group_size, scheme.num_rows, scheme.blocks) != (message.group_size, message.num_rows, blocks):
        raise SchemeError(f"scheme: expected only the fields of granularity {scheme.granularity}, got others as well")
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
        entropy_bits_per_code=report.entropy_bits_per_code,
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
        entropy_bits_per_code=message.entropy_bits_per_code,
        bits_per_weight=message.bits_per_weight,
        bytes_on_disk=message.bytes_on_disk,
    )
