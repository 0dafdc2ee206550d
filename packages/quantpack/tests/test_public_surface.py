import quantpack


def test_public_names() -> None:
    assert quantpack.__all__ == [
        "Axis",
        "Block",
        "CalibrationError",
        "CorruptPackError",
        "Granularity",
        "ModelMismatchError",
        "NotAPackError",
        "OutputExistsError",
        "PackedModelError",
        "PartReport",
        "QuantizedModel",
        "QuantizedTensor",
        "QuantpackConfig",
        "QuantpackError",
        "Scheme",
        "SchemeError",
        "SourceError",
        "WeightError",
        "dequantize",
        "inspect",
        "load",
        "pack",
        "quantize_tensor",
        "read_tensors",
        "unpack",
        "verify",
    ]
    assert all(hasattr(quantpack, name) for name in quantpack.__all__)
