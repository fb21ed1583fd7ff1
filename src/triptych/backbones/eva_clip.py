"""The image encoder: timm's EVA-CLIP tower, as a grid of features."""

from __future__ import annotations

import timm
import torch
from torch import Tensor, nn

from triptych.interfaces import ImageEncoder
from triptych.utils.errors import UserError
from triptych.utils.images import scaled

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class EvaClip(ImageEncoder):
    """EVA-CLIP without CLS token and final norm, average-pooled to a grid of features.

    The defaults are the published tower (4.35 billion parameters): the raw output of the last
    post-norm block, pooled 4x4 from 32x32 to 8x8 tokens of 1792.

    Args:
        image_size, patch_size: pixels; image_size is a multiple of patch_size * pool.
        width, depth, heads, mlp_width: sizes of the transformer.
        pool: side of the average pooling over tokens.
        standardize: give each channel zero mean and unit variance, by running statistics that
            are learned with the encoder. Published features are not standardized; small towers
            trained from scratch have channels of very different scale, which flow matching,
            whose noise has unit scale, learns badly.
    """

    mean, std = CLIP_MEAN, CLIP_STD

    def __init__(
        self,
        image_size: int = 448,
        patch_size: int = 14,
        *,
        width: int = 1792,
        depth: int = 64,
        heads: int = 16,
        mlp_width: int = 15360,
        pool: int = 4,
        standardize: bool = False,
    ) -> None:
        super().__init__()
        if image_size % (patch_size * pool):
            raise UserError(
                f"encoder image_size {image_size} is not a multiple of patch_size {patch_size} "
                f"x pool {pool}; change one of the three."
            )
        if width % heads:
            raise UserError(f"encoder width {width} is not a multiple of heads {heads}.")
        self.image_size, self.patch_size, self.pool = image_size, patch_size, pool
        self.width, self.depth, self.heads, self.mlp_width = width, depth, heads, mlp_width
        self.standardize = standardize
        side = image_size // patch_size // pool
        self.feature_shape = (width, side, side)

    @property
    def feature_std(self) -> float | None:
        return 1.0 if self.standardize else None

    def build(self) -> None:
        for name, colours in (("image_mean", CLIP_MEAN), ("image_std", CLIP_STD)):
            colours = torch.tensor(colours, dtype=torch.float32)[:, None, None]
            self.register_buffer(name, colours, persistent=False)
        self.tower = timm.create_model(
            "eva02_enormous_patch14_clip_224",
            img_size=self.image_size,
            patch_size=self.patch_size,
            embed_dim=self.width,
            depth=self.depth,
            num_heads=self.heads,
            mlp_ratio=self.mlp_width / self.width,
            num_classes=0,
            global_pool="",
            use_post_transformer_norm=False,
            # 'rope' without a rope is plain attention with one fused bias, as in the release.
            attn_type="rope",
        )
        self.norm = (
            nn.BatchNorm2d(self.width, affine=False, momentum=0.02)
            if self.standardize
            else nn.Identity()
        )

    def blocks(self) -> list[nn.Module]:
        return list(self.tower.blocks)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.norm(self.pool_tokens(self.tokens(pixels)))

    def tokens(self, pixels: Tensor) -> Tensor:
        """uint8 [B,3,H,W] -> patch tokens [B,P,width] of the last block, before pooling."""
        return self.image_tokens(self.normalize(pixels))

    def normalize(self, pixels: Tensor) -> Tensor:
        """uint8 [B,3,H,W] of any size -> images float32 [B,3,size,size] by CLIP's mean and std."""
        # Not `pixels_to_unit` moved to [0,1]: that would round differently from the published code.
        return self.clip_normalize(scaled(pixels.to(torch.float32) / 255, self.image_size, 0.0))

    def clip_normalize(self, images: Tensor) -> Tensor:
        """Images float32 [B,3,H,W] in [0,1], less CLIP's mean, over its standard deviation."""
        return (images - self.image_mean) / self.image_std

    def image_tokens(self, images: Tensor) -> Tensor:
        """Normalized images [B,3,size,size] -> patch tokens [B,P,width], CLS dropped."""
        return self.tower.forward_features(images.to(self.tower.pos_embed.dtype))[:, 1:]

    def blank_features(self) -> Tensor:
        """Features of an all-zero normalized image, as published: the mean colour, not black."""
        parameter = self.tower.pos_embed
        images = parameter.new_zeros(1, 3, self.image_size, self.image_size)
        return self.norm(self.pool_tokens(self.image_tokens(images)))

    def pool_tokens(self, tokens: Tensor) -> Tensor:
        """[B,P,C] -> [B,C,h,w]: row-major grid, average-pooled."""
        side = self.image_size // self.patch_size
        grid = tokens.transpose(1, 2).unflatten(2, (side, side))
        return nn.functional.avg_pool2d(grid, self.pool) if self.pool > 1 else grid
