"""Layout of the patches in Qwen2.5-VL's vision tower, and places of its tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLPatchMerger
from transformers.vision_utils import (
    get_vision_cu_seqlens,
    get_vision_position_ids,
    get_vision_window_index,
)

from triptych.backbones.qwen2_5_vl_config import QwenVision


def tower_layout(grids: Tensor, vision: QwenVision) -> dict[str, Tensor]:
    """Positions and windows of the patches of images with grids [images,3], on the host."""
    merge = vision.spatial_merge_size
    index, windows = get_vision_window_index(grids, merge, vision.window_size, vision.patch_size)
    return {
        "position_ids": get_vision_position_ids(grids, merge),
        "cu_seqlens": get_vision_cu_seqlens(grids),
        "window_index": index,
        "cu_window_seqlens": windows,
    }


KEPT = 16
"""Number of layouts that are kept."""


class TowerLayouts:
    """Layouts as the tower takes them, the latest ones kept: training repeats its grids.

    transformers would read the grids from the device, and the lengths of the windows in every
    layer. Lengths stay on the host, as its attention (other than flash) wants numbers.
    """

    def __init__(self, vision: QwenVision) -> None:
        self.vision = vision
        self._kept: dict[tuple, dict[str, Tensor]] = {}

    def __call__(self, grids: Tensor, device: torch.device) -> dict[str, Tensor]:
        """Layout of images with `grids` [images,3]; reading these synchronizes if on a device."""
        key = (*map(tuple, grids.tolist()), device)
        if key not in self._kept:
            if len(self._kept) == KEPT:
                self._kept.pop(next(iter(self._kept)))
            self._kept[key] = self._place(grids, device)
        return dict(self._kept[key])

    # outside of inference mode: training saves the indices for its backward pass
    @torch.inference_mode(False)
    def _place(self, grids: Tensor, device: torch.device) -> dict[str, Tensor]:
        layout = tower_layout(torch.tensor(grids.tolist()), self.vision)
        for name in ("position_ids", "window_index"):
            layout[name] = layout[name].to(device)
        return layout


class PositionalMerger(Qwen2_5_VLPatchMerger):
    """transformers' merger, normalized, plus a learned vector for each place in images of one size.

    The vectors are added after the tower: what they say of a token's place stays beside what the
    tower says of its content, of the same size as that, so that attention finds a token by the one
    and passes on the other.

    Args:
        plain: the merger whose weights it takes over.
        tokens: number of tokens of an image.
        width: width of the language model.
        position_std: deviation of the vectors; the tower's outputs have one of about 1.
    """

    def __init__(
        self, plain: Qwen2_5_VLPatchMerger, tokens: int, width: int, position_std: float
    ) -> None:
        nn.Module.__init__(self)
        self.hidden_size, self.ln_q, self.mlp = plain.hidden_size, plain.ln_q, plain.mlp
        self.norm = nn.RMSNorm(width)
        self.position = nn.Parameter(torch.randn(tokens, width) * position_std)

    def forward(self, x: Tensor) -> Tensor:
        """Patches [images*patches,D] -> tokens [images*tokens,width], both in the windows' order.

        That order is the same for all images of one size.
        """
        tokens = self.norm(super().forward(x)).unflatten(0, (-1, len(self.position)))
        return (tokens + self.position).flatten(0, 1)
