"""Run the tests that show how a processor rounds as other processors would: `make test-portable`.

Vector units are chosen by the variables of ATen, oneDNN and MKL; threads change the order of sums
too. Prints a line for each setting, and what failed. The status is 1 if anything did.
"""

import os
import subprocess
import sys
import time

TESTS = [
    "tests/backbones/test_backbones.py",
    "tests/backbones/test_qwen2_5_vl.py",
    "tests/inference/test_chat.py",
    "tests/cli/test_eval.py::test_shards_make_the_images_of_one_process",
    "tests/data_modules/test_features.py::test_cached_features_are_the_live_ones",
    "tests/inference/test_pipeline_generation.py",
    "tests/modules/test_modules.py",
    "tests/evaluation/test_parity.py",
    "tests/test_sampler.py",
    "tests/serving/test_http.py::test_chat_about_an_image_whole_and_streamed",
    "tests/serving/test_http.py::test_edits_of_one_and_of_several_images",
    "tests/serving/test_http.py::test_images_are_those_of_the_pipeline",
    "tests/backbones/test_siglip2_sana.py",
    "tests/backbones/test_siglip2_sana_preset.py",
    "tests/modules/test_understanding_untouched.py",
    "tests/cli/test_generate.py::test_images_do_not_depend_on_the_batching_of_a_command",
]
MKL = {"default": "SSE4_2", "avx2": "AVX2"}  # which follows ATen's choice


# Threads, ATen, oneDNN: every pair of choices, in half of the runs of all combinations.
CHOICES = [
    ("1", "default", "SSE41"),
    ("1", "avx2", "AVX2"),
    ("2", "default", "AVX2"),
    ("2", "avx2", "SSE41"),
]


def settings() -> list[dict[str, str]]:
    """Environment variables of each run."""
    return [
        {
            "OMP_NUM_THREADS": threads,
            "ATEN_CPU_CAPABILITY": aten,
            "ONEDNN_MAX_CPU_ISA": onednn,
            "MKL_ENABLE_INSTRUCTIONS": MKL[aten],
        }
        for threads, aten, onednn in CHOICES
    ]


def run(setting: dict[str, str], arguments: list[str]) -> bool:
    """Run the tests under a setting and print a line; whether all passed."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow and not sweep", "--tb=short"]
    command += ["-p", "no:cacheprovider", "-p", "no:warnings"]
    if setting["OMP_NUM_THREADS"] == "1":
        command += ["-n", "2", "--dist", "loadfile"]
    begun = time.monotonic()
    done = subprocess.run(
        [*command, *TESTS, *arguments], env=os.environ | setting, capture_output=True, text=True
    )
    words = " ".join(f"{name}={value}" for name, value in setting.items())
    last = done.stdout.strip().rpartition("\n")[2].partition(" in ")[0]
    print(f"{words}: {last}, {time.monotonic() - begun:.0f} s", flush=True)
    if done.returncode:
        print(done.stdout, done.stderr, sep="\n", flush=True)
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(not all([run(setting, sys.argv[1:]) for setting in settings()]))
