"""Methods by name."""

from collections.abc import Callable, Mapping

from quantpack.calibration.sites import Method
from quantpack.methods.awq import Awq
from quantpack.methods.ecm import Ecm
from quantpack.methods.gptq import Gptq
from quantpack.methods.mbq import Mbq
from quantpack.methods.nearest import Nearest
from quantpack.methods.smoothquant import SmoothQuant

METHODS: Mapping[str, Callable[[], Method]] = {
    "rtn": Nearest,
    "gptq": Gptq,
    "awq": Awq,
    "smoothquant": SmoothQuant,
    "mbq": Mbq,
    "ecm": Ecm,
}
