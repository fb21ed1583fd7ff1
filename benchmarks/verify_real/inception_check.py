"""Real Inception v3 weights: our network against TensorFlow.js, and FID through it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image, ImageFilter
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from triptych.evaluation.image_metrics.feature_space import InceptionSpace
from triptych.evaluation.image_metrics.fid import frechet_distance
from triptych.evaluation.image_metrics.inception import SIZE, WIDTH, Inception, load_inception
from triptych.utils.images import image_to_tensor
from verify_real.inception_weights import state_dict
from verify_real.rows import Row
from verify_real.stamps import Stamps, fitted, paste

RECORDED = Path(__file__).parent / "inception_recorded.json"
STAGES = ("Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d")
STAGES += ("Mixed_6e", "Mixed_7a", "Mixed_7b", "Mixed_7c")
IMAGES = 24  # of FID
# Products of up to 2,048 x 9 terms round by about 100 units of 2^-24, 6e-6; 94 layers that add up
# like a random walk make 6e-5. Means of a layer are sums of up to 235,200 numbers in float32.
FEATURES, MEANS = 1e-4, 1e-3
WRONG = 1e-2  # a network with another pooling differs by more


def rows(parts: Path) -> Iterator[Row]:
    """Rows of the check."""
    stamps = Stamps(parts)
    with tempfile.TemporaryDirectory() as scratch:
        weights = Path(scratch, "inception.safetensors")
        save_file(state_dict(parts), weights)
        yield from _network(load_inception(weights), stamps)
        yield from _distances(InceptionSpace(weights), stamps)


def _network(model: Inception, stamps: Stamps) -> Iterator[Row]:
    network, recorded = model.network, json.loads(RECORDED.read_text())
    # Keras takes means in the last block, where FID's network has an error that we have too.
    network.Mixed_7c.pool = network.Mixed_7b.pool
    means, features = _differences(model, stamps, recorded)
    yield Row("inception features", "TensorFlow.js, relative norm, 2 images", features, FEATURES)
    yield Row("inception blocks", "TensorFlow.js, mean of each of 11 blocks", means, MEANS)
    for block in network.children():
        if hasattr(block, "pool"):
            block.pool = lambda x: functional.avg_pool2d(x, 3, stride=1, padding=1)
    _, features = _differences(model, stamps, recorded)
    name = "inception with torchvision's pooling"
    yield Row(name, "TensorFlow.js; must differ", features, WRONG, ">=")


def _differences(model: Inception, stamps: Stamps, recorded: dict) -> tuple[float, float]:
    """Largest relative differences: of the means of the blocks, and of the features."""
    of_means, of_features = [], []
    for name, expected in recorded["images"].items():
        image = paste([(stamps.image(name), (SIZE // 2, SIZE // 2))], SIZE)
        means: list[float] = []
        hooks = [
            getattr(model.network, stage).register_forward_hook(
                lambda _, inputs, output, means=means: means.append(output.abs().mean().item())
            )
            for stage in STAGES
        ]
        features = model(image_to_tensor(image)[None])[0, :: recorded["every"]]
        for hook in hooks:
            hook.remove()
        of_means += [abs(a / b - 1) for a, b in zip(means, expected["stage_means"], strict=True)]
        of_features.append(_relative(features, torch.tensor(expected["features"])))
    return max(of_means), max(of_features)


def _relative(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def _distances(space: InceptionSpace, stamps: Stamps) -> Iterator[Row]:
    """FID of images and of the same images, ever more blurred or noisy."""
    named = [each for each in stamps.all if each.name.startswith(("animals", "food", "vehicles"))]
    chosen = named[:: len(named) // IMAGES][:IMAGES]
    images = [paste([(fitted(stamps.image(c.name), 200), (128, 128))], 256) for c in chosen]
    true = space(images)
    generator = torch.Generator().manual_seed(0)
    blurred = [_fid(space, true, [_blur(i, radius) for i in images]) for radius in (1, 3)]
    noisy = _fid(space, true, [_noise(each, 32, generator) for each in images])
    # Each of the F eigenvalues of a singular product has a root that keeps half of the digits.
    scale = true.double().var(0).sum().item()
    bound = WIDTH * torch.finfo(torch.float64).eps ** 0.5
    same = abs(frechet_distance(true, true)) / scale
    yield Row("FID of a set with itself", f"zero, of the variance {scale:.3g}", same, bound)
    blur, more = blurred
    least = 1e-3 * scale
    yield Row("FID under blur of 1 pixel", "FID of the same set, 0", blur, least, ">=")
    yield Row("FID under blur of 3 pixels", "FID under blur of 1 pixel", more, blur, ">=")
    yield Row("FID under noise of 32", "FID of the same set, 0", noisy, least, ">=")


def _fid(space: InceptionSpace, true: Tensor, images: list[Image.Image]) -> float:
    return frechet_distance(space(images), true)


def _blur(image: Image.Image, radius: float) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(radius))


def _noise(image: Image.Image, deviation: float, generator: torch.Generator) -> Image.Image:
    pixels = image_to_tensor(image).float()
    noisy = pixels + deviation * torch.randn(pixels.shape, generator=generator)
    clipped = noisy.round().clamp(0, 255).byte()
    return Image.fromarray(clipped.permute(1, 2, 0).numpy())
