"""Images of the shapes world as tensors."""

import numpy as np
import torch

from triptych.evaluation.shapes.shape_eval import examples


def drawn(number):
    """Images of the shapes world: uint8 [N,3,48,48]."""
    images = np.stack([example.image for example in examples("eval", number)])
    return torch.from_numpy(images).permute(0, 3, 1, 2)
