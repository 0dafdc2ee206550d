"""Configuration of the edge model (AuroraEdge-V-2B, Section 3)."""

from typing import Any, ClassVar

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from edgevlm.errors import ModelInputError
from edgevlm.model.grids import most_square
from edgevlm.model.loss_weights import check_reconstruction

SIGLIP2_SO400M = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "patch_size": 16,
    "num_patches": 256,
    "vision_use_head": False,
}
QWEN2_1_5B = {
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "rope_theta": 1e6,
    "tie_word_embeddings": True,
}
VISION_TYPES = {"siglip2_vision_model": "siglip2", "siglip_vision_model": "siglip", "clip_vision_model": "clip"}
TEXT_TYPES = ("qwen2", "llama")
CHOICES = {
    "compressor": ("mlp", "conv", "maxpool", "none"),
    "fusion": ("none", "cross", "decoder", "combined"),
    "fusion_order": ("serial", "parallel"),
    "init": ("scaled", "normal"),
    "position_mode": ("contiguous", "uncompressed"),
    "reconstruction": ("none", "features", "pixels"),
}


class EdgeVlmConfig(PreTrainedConfig):
    """Vision encoder, projector, token compressor, fusion module and language model.

    Attributes:
        vision_config: SigLIP2-NaFlex (default), SigLIP or CLIP vision tower.
        text_config: Qwen2 (default) or Llama.
        image_token_id: Placeholder; a prompt holds `num_compressed_tokens` of them for each image.
        num_visual_tokens: Visual tokens of an image before the compressor, padding included;
            derived from `vision_config` when None.
        num_compressed_tokens: Visual tokens of an image that the language model sees.
        compressor: "mlp", "conv", "maxpool", or "none" (then both numbers are equal). For conv and maxpool the
            compressed tokens are the cells of the most nearly square grid of their number.
        compressor_hidden_act: Nonlinearity of the token-axis MLP.
        fusion: "none", "cross", "decoder" or "combined".
        fusion_order: How "combined" joins its branches: "serial" (cross, then decoder), or "parallel"
            (text plus what each of them adds to it).
        num_fusion_layers: Blocks of each branch, one after another.
        vision_feature_layer: Index into the encoder's hidden states; None takes the encoder's output.
        projector_hidden_act: Nonlinearity of the 2-layer projector.
        projector_bias: Whether the projector's layers have a bias.
        init: "scaled", or "normal": N(0, 1) for projector, compressor and cross attention, as the
            paper prints it (Section 4.1); that diverges.
        position_mode: "contiguous" counts positions over the sequence the language model sees;
            "uncompressed" gives a compressed token its group's mean position and text the position
            it has beside uncompressed images.
        reconstruction: What a head for training predicts from compressed tokens: "features" of the encoder, "pixels",
            or "none".
        reconstruction_loss_weight: Of its loss, in the loss of a batch with labels.
        text_loss_weight: Of the answers' loss beside it; with 0 the language model is not run for a loss at all.
        tie_word_embeddings: Whether the head shares the word embeddings; follows `text_config`.
    """

    model_type = "edgevlm"
    sub_configs_defaults: ClassVar[dict[str, SubConfigSpec]] = {
        "vision_config": SubConfigSpec(
            config_class=AutoConfig, model_type="siglip2_vision_model", init_kwargs=SIGLIP2_SO400M
        ),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="qwen2", init_kwargs=QWEN2_1_5B),
    }

    vision_config: dict[str, Any] | PreTrainedConfig | None = None
    text_config: dict[str, Any] | PreTrainedConfig | None = None
    image_token_id: int = 151655
    num_visual_tokens: int | None = None
    num_compressed_tokens: int = 64
    compressor: str = "mlp"
    compressor_hidden_act: str = "gelu"
    fusion: str = "combined"
    fusion_order: str = "serial"
    num_fusion_layers: int = 1
    vision_feature_layer: int | None = None
    projector_hidden_act: str = "gelu"
    projector_bias: bool = True
    init: str = "scaled"
    position_mode: str = "contiguous"
    reconstruction: str = "none"
    reconstruction_loss_weight: float = 1.0
    text_loss_weight: float = 1.0
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        vision: Any = self.vision_config
        text: Any = self.text_config
        self.tie_word_embeddings = self.tie_word_embeddings or bool(text.tie_word_embeddings)
        if vision.model_type not in VISION_TYPES:
            raise ModelInputError(f"vision_config: expected one of {sorted(VISION_TYPES)}, got {vision.model_type!r}")
        if text.model_type not in TEXT_TYPES:
            raise ModelInputError(f"text_config: expected one of {TEXT_TYPES}, got {text.model_type!r}")
        if self.num_visual_tokens is None:
            self.num_visual_tokens = num_patches(vision)
        self._check_choices()
        check_reconstruction(self)
        # The embeddings are an encoder's first hidden state.
        self._check_numbers(self.num_visual_tokens, int(vision.num_hidden_layers) + 1, int(text.num_hidden_layers))

    def _check_choices(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ModelInputError(f"{name}: expected one of {choices}, got {getattr(self, name)!r}")

    def _check_numbers(self, num_visual: int, num_encoded: int, num_text_layers: int) -> None:
        wanted, got = f"1 to {num_visual}", self.num_compressed_tokens
        fits = 1 <= got <= num_visual
        if fits and self.compressor == "none":
            wanted, fits = f"{num_visual} without a compressor", got == num_visual
        if fits and self.compressor in ("conv", "maxpool"):
            grid, cells = most_square(num_visual), most_square(got)
            wanted = f"a number whose most nearly square grid fits into {grid[0]} x {grid[1]} for {self.compressor}"
            fits = cells[0] <= grid[0] and cells[1] <= grid[1]
        if not fits:
            raise ModelInputError(f"num_compressed_tokens: expected {wanted}, got {got}")
        if self.vision_feature_layer is not None and not -num_encoded <= self.vision_feature_layer < num_encoded:
            raise ModelInputError(
                f"vision_feature_layer: expected {-num_encoded} to {num_encoded - 1}, of the encoder's hidden states, "
                f"got {self.vision_feature_layer}"
            )
        if not 1 <= self.num_fusion_layers <= num_text_layers:
            raise ModelInputError(
                f"num_fusion_layers: expected 1 to {num_text_layers}, the language model's layers, "
                f"got {self.num_fusion_layers}"
            )

    @property
    def vision_encoder(self) -> str:
        """The encoder's short name: "siglip2", "siglip" or "clip"."""
        vision: Any = self.vision_config
        return VISION_TYPES[vision.model_type]


def num_patches(vision: Any) -> int:
    """Patches of one image, without a class token; for NaFlex the most it may have."""
    if vision.model_type == "siglip2_vision_model":
        return int(vision.num_patches)
    return int(vision.image_size // vision.patch_size) ** 2


AutoConfig.register(EdgeVlmConfig.model_type, EdgeVlmConfig)
