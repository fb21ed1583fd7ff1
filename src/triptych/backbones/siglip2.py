"""The alternative image encoder: transformers' SigLIP 2 tower, as a grid of features."""

from __future__ import annotations

from torch import Tensor, nn
from transformers import SiglipVisionConfig, SiglipVisionModel

from triptych.interfaces import ImageEncoder
from triptych.utils.errors import UserError
from triptych.utils.images import pixels_to_unit


class Siglip2(ImageEncoder):
    """SigLIP 2 before its last layer, average-pooled to a grid of features.

    The defaults are google/siglip2-so400m-patch16-512 as BLIP3-o uses it: the output of the last
    layer but one (transformers' `hidden_states[-2]`), pooled from 32x32 to 8x8 tokens of 1152.

    Args:
        image_size, patch_size: sides in pixels; image_size is a multiple of patch_size.
        width, depth, heads, mlp_width: sizes of the whole tower. The layers after the features,
            its last layer, final norm and pooling head, is neither built nor loaded.
        grid: side of the feature grid.
    """

    def __init__(
        self,
        image_size: int = 512,
        patch_size: int = 16,
        *,
        width: int = 1152,
        depth: int = 27,
        heads: int = 16,
        mlp_width: int = 4304,
        grid: int = 8,
    ) -> None:
        super().__init__()
        if image_size % patch_size:
            raise UserError(
                f"encoder image_size {image_size} is not a multiple of patch_size {patch_size}."
            )
        if width % heads:
            raise UserError(f"encoder width {width} is not a multiple of heads {heads}.")
        if depth < 2:
            raise UserError(f"encoder depth {depth} must be 2 or more: the last layer is not used.")
        side = image_size // patch_size
        if grid > side:
            raise UserError(f"encoder grid {grid} is finer than the {side}x{side} patches.")
        self.image_size, self.patch_size, self.grid = image_size, patch_size, grid
        self.width, self.depth, self.heads, self.mlp_width = width, depth, heads, mlp_width
        self.feature_shape = (width, grid, grid)

    def build(self) -> None:
        self.tower = SiglipVisionModel(
            SiglipVisionConfig(
                hidden_size=self.width,
                intermediate_size=self.mlp_width,
                num_hidden_layers=self.depth - 1,
                num_attention_heads=self.heads,
                image_size=self.image_size,
                patch_size=self.patch_size,
                vision_use_head=False,
            )
        )
        self.tower.post_layernorm = nn.Identity()

    def blocks(self) -> list[nn.Module]:
        return list(self.tower.encoder.layers)

    def forward(self, pixels: Tensor) -> Tensor:
        """uint8 [B,3,H,W] of any size -> raw features [B,width,grid,grid]."""
        side = self.image_size // self.patch_size
        tokens = self.tokens(pixels).transpose(1, 2).unflatten(2, (side, side))
        return nn.functional.adaptive_avg_pool2d(tokens, self.grid)

    def tokens(self, pixels: Tensor) -> Tensor:
        """uint8 [B,3,H,W] -> patch tokens [B,P,width], row by row, before pooling."""
        # Mean and deviation of SigLIP's own processor are 0.5: that is the range [-1,1].
        images = pixels_to_unit(pixels, self.image_size)
        embeddings = self.tower.embeddings
        patches = embeddings.patch_embedding(images.to(self.tower.dtype))
        # Instead of `embeddings(images)`, which looks positions up by numbers kept in a buffer
        # outside the state dict: a tower built on meta and then filled would lack them.
        positions = embeddings.position_embedding.weight
        return self.tower.encoder(
            inputs_embeds=patches.flatten(2).transpose(1, 2) + positions
        ).last_hidden_state
