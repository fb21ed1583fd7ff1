"""Images as Qwen2.5-VL's vision tower reads them: patches, and the grid that they lie on."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen2VLImageProcessor

from triptych.backbones.qwen2_5_vl_config import QwenVision
from triptych.utils.errors import UserError


class ImagePatches:
    """Cuts images into patches; needs no network.

    Patches are float32 [N, 3 * temporal_patch_size * patch_size^2], those of all images one after
    the other; grids [images, 3] are frames, rows and columns in patches.

    Args:
        vision: sizes of the vision tower.
        image_size: side in pixels of a square image.
        min_pixels, max_pixels: area limits of images in conversations; both None: images are
            squares there too.

    Raises:
        UserError: a size is not a multiple of another, or the limits do not fit together.
    """

    def __init__(
        self, vision: QwenVision, image_size: int, min_pixels: int | None, max_pixels: int | None
    ) -> None:
        unit = vision.patch_size * vision.spatial_merge_size
        if image_size % unit:
            raise UserError(
                f"vlm image_size {image_size} is not a multiple of {unit}, which is "
                f"patch_size {vision.patch_size} x spatial_merge_size {vision.spatial_merge_size}; "
                "change one of the three."
            )
        both = min_pixels is not None and max_pixels is not None
        if (min_pixels, max_pixels) != (None, None) and not (both and 0 < min_pixels <= max_pixels):
            raise UserError(
                f"vlm min_pixels {min_pixels} and max_pixels {max_pixels}: give both, the "
                "first the smaller, or neither."
            )
        if vision.position_std and max_pixels is not None:
            raise UserError(
                "vlm vision.position_std learns the places of images of one size, and max_pixels "
                "asks for images of any; leave one of the two out."
            )
        self.vision, self.image_size = vision, image_size
        self.min_pixels, self.max_pixels = min_pixels, max_pixels

    @property
    def patches_of_a_token(self) -> int:
        return self.vision.spatial_merge_size**2

    @property
    def tokens_of_a_square(self) -> int:
        side = self.image_size // (self.vision.patch_size * self.vision.spatial_merge_size)
        return side * side

    @cached_property
    def _processor(self) -> Qwen2VLImageProcessor:
        """Cuts images into patches; images come at `image_size` already."""
        return self._processor_of(do_resize=False)

    @cached_property
    def _chat_processor(self) -> Qwen2VLImageProcessor:
        """Processor that also scales images to multiples of a token's side, keeping their shape."""
        return self._processor_of(
            size={"shortest_edge": self.min_pixels, "longest_edge": self.max_pixels}
        )

    def _processor_of(self, **options: Any) -> Qwen2VLImageProcessor:
        return Qwen2VLImageProcessor(
            patch_size=self.vision.patch_size,
            temporal_patch_size=self.vision.temporal_patch_size,
            merge_size=self.vision.spatial_merge_size,
            **options,
        )

    def of_squares(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Patches and grids of images [N,3,image_size,image_size]."""
        out = self._processor(images=list(images), return_tensors="pt")
        return out["pixel_values"], out["image_grid_thw"]

    def of_any_shape(self, images: Sequence[Tensor]) -> tuple[Tensor, Tensor, list[int]] | None:
        """Patches, grids and numbers of tokens of images [3,H,W]; None where all are squares.

        Raises:
            UserError: an image is more than 200 times as long as wide.
        """
        if self.max_pixels is None:
            return None
        try:
            out = self._chat_processor(images=list(images), return_tensors="pt")
        except ValueError as error:
            raise UserError(f"an image cannot be shown to the model: {error}.") from error
        grids = out["image_grid_thw"]
        return out["pixel_values"], grids, (grids.prod(1) // self.patches_of_a_token).tolist()

    def blank(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Patches and grid of an image of one token, or of a whole one, in the mean colour."""
        vision, side = self.vision, self.vision.spatial_merge_size
        if vision.position_std:
            side = self.image_size // vision.patch_size
        numbers = 3 * vision.temporal_patch_size * vision.patch_size**2
        return torch.zeros(side * side, numbers, device=device), torch.tensor([[1, side, side]])
