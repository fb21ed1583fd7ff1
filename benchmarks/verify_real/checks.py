"""All checks, and what no package makes possible to check."""

from __future__ import annotations

from verify_real.running import Check

CHECKS = (
    Check("tokenizer", "verify_real.tokenizer_check:rows", ("qwen3 tokenizer", "qwen ranks")),
    Check("inception", "verify_real.inception_check:rows", ("inception", "stamps")),
    Check(
        "detector",
        "verify_real.geneval_check:rows",
        ("coco detector", "stamps"),
        packages=True,
    ),
    Check("smollm2", "verify_real.smollm2_check:rows", ("smollm2 135m",), packages=True),
    Check(
        "qwen2.5",
        "verify_real.qwen_check:rows",
        ("qwen2.5 1.5b", "qwen3 tokenizer"),
        packages=True,
        memory=7,
    ),
    Check(
        "stage 2",
        "verify_real.stage2_check:rows",
        ("qwen2.5 1.5b", "qwen3 tokenizer", "stamps"),
        packages=True,
        memory=8,
    ),
)

NO_WEIGHTS = (
    "CLIP score and CLIP colours",
    "EVA-CLIP",
    "SigLIP 2",
    "Inception weights of FID",
    "Mask2Former",
    "Qwen2.5-VL vision tower",
    "VLM judges",
    "SDXL and SANA decoders",
    "VAE",
)
UNCHECKED = tuple(f"{name}: no package holds the weights" for name in NO_WEIGHTS)
