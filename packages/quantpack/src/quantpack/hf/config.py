"""The `quantization_config` of a pack's config.json, as transformers wants it."""

from typing import Any, cast

from transformers.utils.quantization_config import Mxfp4Config

from quantpack.source import METHOD


# transformers lets a caller change a stored quantization config for a closed list of classes only; being one of
# them is the way in. Of those, this one has the same switch, and is otherwise told apart by its quant_method alone.
class QuantpackConfig(Mxfp4Config):
    """How a pack was quantized, and how it is to be loaded.

    Args:
        dequantize: True: `from_pretrained` gives a model of ordinary linear layers. False: linear layers keep
            their codes in memory, two to a byte. A choice of the caller: never written to config.json.
        fields: The fields of config.json, as `Scheme.as_fields` gives them; not looked at when loading, since
            the pack's index says for each tensor what holds.
    """

    def __init__(self, dequantize: bool = False, **fields: Any) -> None:
        fields.pop("quant_method", None)
        # transformers knows its own methods as an enum of strings, and registered ones as strings.
        self.quant_method = cast("Any", METHOD)
        self.dequantize = dequantize
        self.fields = fields

    def to_dict(self) -> dict[str, Any]:
        """What config.json holds."""
        return {"quant_method": self.quant_method, **self.fields}
