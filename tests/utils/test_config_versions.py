"""Configurations of older versions are refused in one sentence; those of this one never are."""

import pytest
import yaml
from builders import ROOT

from triptych.inference.loading import describe_model
from triptych.utils.config_versions import require_current
from triptych.utils.errors import ConfigurationError

OLD = {
    "loss_weights": {"model": {"losses": {"generation": 1.0}, "trains": ["generation"]}},
    "min_lr": {"model": {"optimization": {"final_lr": 0.0}}},
    "lr_scheduler": {"model": {"optimization": {"schedule": "cosine"}}},
    "frozen_params": {"model": {"execution": {"frozen": "shard"}}},
    "num_queries": {
        "model": {"generation": {"class_path": "x.Y", "init_args": {}}, "number_of_queries": 4}
    },
    "flow.num_noise_samples": {
        "model": {
            "generation": {
                "class_path": "triptych.modules.GenerationModule",
                "init_args": {"draws": 2},
            }
        }
    },
    "prompt.template": {
        "model": {
            "generation": {
                "class_path": "triptych.modules.GenerationModule",
                "init_args": {"template": "inference"},
            }
        }
    },
    "sampling.num_inference_steps": {
        "model": {
            "generation": {
                "class_path": "triptych.modules.GenerationModule",
                "init_args": {"num_inference_steps": 9},
            }
        }
    },
    "vlm": {
        "model": {
            "understanding": {
                "class_path": "triptych.modules.UnderstandingModule",
                "init_args": {"understander": {"class_path": "triptych.backbones.QwenVL"}},
            }
        }
    },
    "model.vae": {
        "model": {
            "decoding": {
                "class_path": "triptych.modules.PixelDecoderModule",
                "init_args": {
                    "decoder": {
                        "class_path": "triptych.backbones.SDXLDecoder",
                        "init_args": {"vae": {"class_path": "triptych.backbones.KLAutoencoder"}},
                    }
                },
            }
        }
    },
    "save_top_k": {
        "trainer": {
            "callbacks": [{"class_path": "triptych.callbacks.Checkpoint", "init_args": {"keep": 3}}]
        }
    },
    "num_images": {
        "trainer": {
            "evaluator": {
                "class_path": "triptych.evaluation.FeatureDistance",
                "init_args": {"reference": "a", "images": 4},
            }
        }
    },
    "num_val_samples": {"data": {"init_args": {"val_samples": 4}}},
}


@pytest.mark.parametrize("new", OLD)
def test_a_configuration_with_an_old_key_is_refused_with_the_new_one(new):
    with pytest.raises(ConfigurationError, match=f"x.yaml is of an older version.* is now {new}"):
        require_current(OLD[new], "x.yaml")


def test_keys_of_other_classes_are_their_own():
    own = {"class_path": "mine.Sampler", "init_args": {"draws": 2, "keep": 1, "val_samples": 3}}
    require_current({"trainer": {"callbacks": [own]}, "data": {"drop": 0.1, "every": 2}}, "x.yaml")


@pytest.mark.parametrize("path", sorted((ROOT / "conf").rglob("*.yaml")), ids=lambda p: p.stem)
def test_the_configurations_of_this_version_pass(path):
    require_current(yaml.safe_load(path.read_text()), path)


def test_run_of_an_old_version_is_refused(tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(OLD["loss_weights"]))
    with pytest.raises(ConfigurationError, match="older version of triptych"):
        describe_model([tmp_path / "config.yaml"])


def test_fit_refuses_the_configuration_of_an_old_run(triptych, tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(OLD["loss_weights"]))
    status, _, err = triptych("fit", "--config", tmp_path / "config.yaml")
    assert status == 2 and err.count("\n") == 1 and "losses is now loss_weights" in err
