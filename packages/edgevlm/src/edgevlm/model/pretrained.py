"""What the edge model's classes share: configuration, attention backend, initialisation."""

import math

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init

from edgevlm.model.compressors import ConvCompressor, MlpCompressor
from edgevlm.model.configuration import EdgeVlmConfig
from edgevlm.model.connectors import Projector
from edgevlm.model.fusion import CrossFusion, DecoderFusion
from edgevlm.model.reconstruction import Reconstruction


class EdgeVlmPreTrainedModel(PreTrainedModel):
    """Base of the edge model's classes."""

    config: EdgeVlmConfig
    config_class = EdgeVlmConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    # Makes `generate` encode the images once, before rows are repeated for beams.
    input_modalities = ["image", "text"]  # noqa: RUF012
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_sdpa = True
    # A head for training comes and goes; a fresh one is no fault of the checkpoint.
    _keys_to_ignore_on_load_missing = [r"model\.reconstruction\."]  # noqa: RUF012
    _keys_to_ignore_on_load_unexpected = [r"model\.reconstruction\."]  # noqa: RUF012

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False) -> None:
        # transformers skips a module without parameters of its own in code it does not know, and with
        # it the connectors, which are initialised as a whole, after their layers.
        super()._initialize_weights(module, is_custom_code=False)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, CrossFusion | DecoderFusion):
            for name, parameter in module.named_parameters(recurse=False):
                assert name.endswith("gate")
                init.zeros_(parameter)
        scaled = self.config.init == "scaled"
        if isinstance(module, MlpCompressor) and scaled:
            for linear, weight in zip((module.linear_1, module.linear_2), module.average_weights(), strict=True):
                init.copy_(linear.weight, weight)
                init.zeros_(linear.bias)
        elif isinstance(module, ConvCompressor) and scaled:
            init.constant_(module.pool.weight, 1 / math.prod(module.pool.kernel_size))
            init.dirac_(module.mix.weight)
            for convolution in (module.pool, module.mix):
                assert convolution.bias is not None
                init.zeros_(convolution.bias)
        elif isinstance(module, Projector | MlpCompressor | ConvCompressor | CrossFusion | Reconstruction):
            for layer in module.children():
                if isinstance(layer, nn.Linear | nn.Conv2d):
                    init.normal_(layer.weight, std=1 / math.sqrt(layer.weight[0].numel()) if scaled else 1.0)
                    if layer.bias is not None:
                        init.zeros_(layer.bias)
        else:
            super()._init_weights(module)
