"""The command line with the default callbacks, and with the user's own of docs/callbacks.md."""

import csv
import re

import pytest
import torch
import yaml
from builders import ROOT
from commands import run


@pytest.mark.slow
def test_the_documented_callback_ends_a_run_with_the_default_ones(tmp_path, shapes_folder):
    page = (ROOT / "docs/callbacks.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (flags,) = re.findall(r'ARGS="(--trainer\.callbacks\+=my_package.*?)"', page)
    (tmp_path / "my_package.py").write_text(code)
    stage = {  # stage 2 without its sheets and scores
        "model": {
            "stage": "stage2",
            "loss_weights": {"generation": 1.0},
            "weights": {"generation": None},
            "build_decoder": False,
        },
        "data": {
            "class_path": "triptych.data_modules.ShardDataModule",
            "init_args": {"shards": str(shapes_folder / "train"), "batch_size": 4},
        },
        "trainer": {"max_steps": 5, "log_every_n_steps": 1, "limit_val_batches": 0},
    }
    (tmp_path / "stage.yaml").write_text(yaml.safe_dump(stage))
    result = run(
        tmp_path,
        *("fit", "--config", ROOT / "conf/base.yaml", "--config", ROOT / "conf/presets/tiny.yaml"),
        *("--config", "stage.yaml", *flags.split()),
        *("--trainer.callbacks+=FrozenCheck", "--trainer.callbacks+=EMA"),
        "--trainer.enable_progress_bar=false",
    )
    assert result.returncode == 0, result.stderr[-3000:]
    folder = tmp_path / "runs/tiny/stage2/version_0"
    saved = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    assert saved["global_step"] == 2 and len(saved["callbacks"]["StopBelow"]["last"]) == 2
    assert "generation.dit" in result.stdout and "to do: 5 steps of 4 samples" in result.stdout
    assert (folder / "weights_ema.safetensors").exists()
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    for name in ("grad_norm/all", "throughput/tokens_per_s", "throughput/tflops_per_device"):
        assert len([row for row in rows if row.get(name)]) == 2
