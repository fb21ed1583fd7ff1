"""Inception network of the definition of FID, with weights from a file that the user names.

torchvision's network with the three poolings of TensorFlow's network of 2015 (Heusel et al. 2017,
arXiv 1706.08500). torch-fidelity has it too, but unpickles weight files, which can run any code;
here files are read as data only.
"""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import inception as stock

from triptych.checkpoints.key_prefixes import state_dict_in, with_plain_names
from triptych.checkpoints.weight_checks import require_state
from triptych.utils.errors import UserError

SIZE = 299  # side of the input in pixels
WIDTH = 2048  # number of features
# First digits of the SHA-256 of the published file, weights-inception-2015-12-05-6726825d.pth.
# pytorch-fid publishes the same tensors under pt_inception-2015-12-05-6726825d.pth.
PUBLISHED = "6726825d"
DAMAGED = (OSError, EOFError, RuntimeError, AttributeError, UnpicklingError, SafetensorError)


class _OwnPool:
    """An Inception block whose last branch pools differently from torchvision's."""

    @staticmethod
    def pool(x: Tensor) -> Tensor:
        """Average pooling without the padding, which torchvision counts as zeros."""
        return functional.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)

    def _forward(self, x: Tensor) -> list[Tensor]:
        *others, _ = super()._forward(x)
        return [*others, self.branch_pool(self.pool(x))]


class _BlockA(_OwnPool, stock.InceptionA):
    pass


class _BlockC(_OwnPool, stock.InceptionC):
    pass


class _BlockE(_OwnPool, stock.InceptionE):
    pass


class _LastBlock(_OwnPool, stock.InceptionE):
    @staticmethod
    def pool(x: Tensor) -> Tensor:
        """Max pooling: an error of the published network that is part of the definition of FID."""
        return functional.max_pool2d(x, 3, stride=1, padding=1)


class Inception(nn.Module):
    """Network from images uint8 [B,3,H,W] to features float32 [B,2048]."""

    def __init__(self) -> None:
        super().__init__()
        blocks = [
            *(stock.BasicConv2d, _BlockA, stock.InceptionB, _BlockC, stock.InceptionD, _BlockE),
            stock.InceptionAux,
        ]
        self.network = stock.Inception3(
            aux_logits=False, inception_blocks=blocks, init_weights=False
        )
        self.network.Mixed_7c = _LastBlock(WIDTH)
        self.network.fc = nn.Identity()
        self.eval().requires_grad_(False)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.network(self.scaled(pixels))

    @staticmethod
    def scaled(pixels: Tensor) -> Tensor:
        """Scale uint8 [B,3,H,W] to float32 [B,3,299,299], like torchmetrics by default."""
        images = functional.interpolate(
            pixels.float(), (SIZE, SIZE), mode="bilinear", antialias=True
        )
        return (images - 128) / 128


def load_inception(path: str | Path) -> Inception:
    """Load the network with weights from a .pth or .safetensors file.

    Raises:
        UserError: the file is missing, damaged or of another network, or has invalid weights.
    """
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            tensors = load_file(path)
        else:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
        with torch.device("meta"):
            model = Inception()
        own = model.network.state_dict()
        tensors = with_plain_names(state_dict_in(tensors, path), own.__contains__, path)
        tensors = {name: each for name, each in tensors.items() if not name.startswith("fc.")}
        require_state(tensors, own, path)
        tensors = {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}
        model.network.load_state_dict(tensors, assign=True)
    except FileNotFoundError as error:
        raise UserError(
            f"{path} does not exist; FID's Inception weights are published as "
            f"weights-inception-2015-12-05-{PUBLISHED}.pth, by torch-fidelity."
        ) from error
    except DAMAGED as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"{path} does not hold the weights of FID's Inception network "
            f"({reason}); name weights-inception-2015-12-05-{PUBLISHED}.pth."
        ) from error
    return model.eval().requires_grad_(False)
