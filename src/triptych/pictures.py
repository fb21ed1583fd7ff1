"""Pictures as people have them, made into the squares that models take."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import center_crop, resize


def square(picture: Image.Image, size: int) -> Tensor:
    """The published transform: short side to `size` (bicubic), centre crop; uint8 [3,size,size].

    torchvision's, for its rounding: the long side down, half a pixel of the crop to even.
    """
    picture = picture.convert("RGB")
    if picture.size != (size, size):
        picture = center_crop(resize(picture, size, InterpolationMode.BICUBIC), size)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)
