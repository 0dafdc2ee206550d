"""What the options of a command mean: recipes, calibration data."""

from typing import Literal

from quantpack.calibration.sites import Method
from quantpack.errors import SchemeError
from quantpack.methods.ecm import Ecm, Rounding
from quantpack.methods.gptq import Gptq
from quantpack.methods.nearest import Nearest
from quantpack.methods.registry import METHODS

MethodName = Literal["rtn", "gptq", "awq", "smoothquant", "mbq", "ecm"]


def method_of(name: MethodName, rounding: Rounding, alpha: float | None) -> Method:
    """The method that the options name.

    Raises:
        SchemeError: An option that the method does not have.
    """
    if alpha is not None and name != "ecm":
        raise SchemeError(f"--alpha: expected it with --method ecm only, got --method {name}")
    if name == "ecm":
        return Ecm(alpha=alpha or 0.0, rounding=rounding)
    if rounding == "gptq" and name not in ("rtn", "gptq"):
        raise SchemeError(f"--rounding gptq: expected it with --method rtn or ecm, got --method {name}")
    if name == "rtn":
        return Gptq() if rounding == "gptq" else Nearest()
    return METHODS[name]()
