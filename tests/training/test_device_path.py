"""Training and inference on a CUDA device that is only believed in: shapes, dtypes, devices, waits.

Nothing is computed, so that every preset runs at its real widths; numbers are not tested here.
"""

from importlib.metadata import version
from itertools import chain

import pytest
from fake_cuda import runtime

pytestmark = [pytest.mark.linux, pytest.mark.cuda_stub]

STAGES = ("encoder", "decoder", "stage1", "stage2", "stage3", "edits", "joint")
VARIANTS = (
    "stage2:flops",
    "stage2:live",
    "stage2:resumed",
    "stage2:clip_mse",
    "stage2:vae_flow",
    "joint:accumulated",
    "edits:channels",
    "edits:tokens:live",
)
LARGE = ("blip3o_8b", "blip3o_4b", "siglip2_sana")
QUICK = {
    "tiny": [f"step:tiny:{each}" for each in (*STAGES, *VARIANTS)],
    **{preset: [f"step:{preset}:stage2"] for preset in LARGE},
}
"""By preset, the steps that `make test` takes."""
REST = {
    preset: [
        case
        for stage in STAGES
        for case in (f"step:{preset}:{stage}{end}", f"step:{preset}:{stage}{end}:live")
        if case not in QUICK.get(preset, [])
        if not case.endswith(":live") or stage in ("stage2", "stage3", "joint")
        if (preset, stage) != ("siglip2_sana", "encoder")  # it has none
    ]
    for preset, end in (("tiny", ":whole"), *((each, "") for each in LARGE))
}
REST["blip3o_8b"].append("step:blip3o_8b:stage2:whole")
MORE = [
    "step:tiny:stage2:whole",
    "step:blip3o_8b:decoder",
    "step:blip3o_4b:joint",
    "step:siglip2_sana:stage2:live",
    "step:siglip2_sana:decoder",
]
"""The steps that `make test-slow` takes; `make test-sweep` takes all, see `REST`."""
INFERENCE = {
    "inference:tiny:euler": [],
    "inference:tiny:heun:dpm++:unipc": [pytest.mark.slow],
    "inference:blip3o_8b:euler": [pytest.mark.sweep],
    "inference:siglip2_sana:euler": [pytest.mark.sweep],
}
FLOAT32 = {
    "dc_ae.py": "linear attention sums keys and values of all tokens, in float32 as published",
    "sana.py": "the same, in the transformer's inference",
}
"""Files whose matrix products in float32 are meant, and why."""
if version("transformers").startswith("5.17."):
    FLOAT32["modeling_qwen2_5_vl.py:558"] = "angles of rotary positions; later ones multiply"
TOKEN = {
    "src/triptych/backbones/token_sampling.py": "the new tokens become text, the one read needed",
    "transformers/generation/utils.py": (
        "transformers' loop asks whether a row is left; the device is idle after the read before"
    ),
}
"""Places in which a chat synchronizes for each token, and why."""

ON_HOST = {"training/ranks.py": "ranks agree on signals in the background, a step later"}
"""Files whose collectives are on the CPU, and why."""

LOGGED = "step:tiny:stage2:logged"
LOGGING = {
    "callbacks/throughput.py": "the time is that of a device which has caught up",
    "callbacks/guards.py": "flags of the steps since the last log",
    "callbacks/progress.py": "losses that the bar shows",
    "lightning/fabric/utilities/apply_func.py": "values that the loggers write",
    "lightning/pytorch/callbacks/lr_monitor.py": "a plain number, which Lightning copies",
    "logger_connector/result.py": "the same",
}
"""Files that synchronize in a step that is logged, and why."""

BROKEN = [f"step:tiny:stage2:break-{name}" for name in ("read", "host", "float32")]
RANKS = [f"step:tiny:{each}:fsdp2" for each in ("stage2", "edits", "edits:channels", "joint:live")]
TOGETHER = [*chain(*QUICK.values()), LOGGED, *BROKEN, "inference:tiny:euler", *RANKS]
SLOWLY = [*MORE, "inference:tiny:heun:dpm++:unipc"]
"""Cases of one process each time, which imports everything once."""


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Function that runs cases, each once."""
    folder, kept = tmp_path_factory.mktemp("stub"), {}

    def of(*cases):
        if missing := [case for case in cases if case not in kept]:
            shared = (each for each in (TOGETHER, SLOWLY) if set(missing) <= set(each))
            kept.update(runtime.run(folder, *next(shared, missing)))
        return [kept[case] for case in cases]

    return of


def steps():
    """A parameter for each preset and speed."""
    slow, sweep = pytest.mark.slow, pytest.mark.sweep
    quick = [pytest.param(cases, id=preset) for preset, cases in QUICK.items()]
    rest = [pytest.param(c, id=f"{name}-rest", marks=sweep) for name, c in REST.items()]
    return [*quick, pytest.param(MORE, id="large", marks=slow), *rest]


@pytest.mark.parametrize("cases", steps())
def test_a_step_never_waits_for_the_device(results, cases):
    for case, result in zip(cases, results(*cases), strict=True):
        assert "error" not in result, f"{case}: {result['error']}"
        assert not texts(result["events"], "sync"), case
        stays_on_the_device(case, result["events"])


def stays_on_the_device(case, events):
    """Check that no tensor of the host takes part in a step, but for the batch."""
    # copies are those of the loader's pinned memory
    copies = [text for text in texts(events, "copy") if "interfaces/batch.py" not in text]
    assert not copies, case
    # a CPU scalar is an argument of a kernel; one in a step would be a number made on the host
    assert not texts(events, "cpu") + texts(events, "mixed"), case


def test_only_what_logs_waits_for_the_device_in_a_logged_step(results):
    (result,) = results(LOGGED)
    assert "error" not in result, result["error"]
    syncs = texts(result["events"], "sync")
    assert not [text for text in syncs if not any(file in text for file in LOGGING)]
    assert all(any(file in text for text in syncs) for file in LOGGING)
    stays_on_the_device(LOGGED, result["events"])


@pytest.mark.parametrize("cases", [*steps(), pytest.param(RANKS, id="fsdp2")])
def test_matrix_products_are_in_bfloat16(results, cases):
    for case, result in zip(cases, results(*cases), strict=True):
        products = texts(result["events"], "float32")
        assert not [text for text in products if not any(f in text for f in FLOAT32)], case
        assert not result["wide"], case


@pytest.mark.parametrize(
    ("case", "file", "library"),
    [
        ("step:tiny:stage2:live", "backbones/eva_clip.py", "timm"),
        ("step:tiny:decoder", "backbones/vae.py", "diffusers"),
    ],
)
def test_a_frozen_encoder_keeps_its_residual_stream_in_bfloat16(results, case, file, library):
    (result,) = results(case)
    casts = [text for text in texts(result["events"], "cast") if file in text]
    assert casts  # its input
    assert not [text for text in casts if f"via {library}" in text]


def test_what_is_broken_is_noticed(results):
    read, host, wide = results(*BROKEN)
    (read,) = texts(read["events"], "sync")
    assert "_local_scalar_dense at tests/helpers/fake_cuda/cases.py" in read
    assert "two different devices" in host["error"] or "found at least two devices" in host["error"]
    assert any(name.startswith("understanding.vlm") for name in wide["wide"])


@pytest.mark.parametrize("case", RANKS)
def test_the_ranks_of_a_sharded_step_wait_for_nothing_on_the_host(results, case):
    (result,) = results(case)
    assert "error" not in result, result["error"]
    assert not texts(result["events"], "sync")
    stays_on_the_device(case, result["events"])
    collectives = texts(result["events"], "collective")
    assert collectives
    assert not [text for text in collectives if "barrier" in text]
    on_host = [text for text in collectives if "on cuda" not in text]
    assert all(any(file in text for file in ON_HOST) for text in on_host), on_host


@pytest.mark.parametrize("case", [pytest.param(c, marks=m) for c, m in INFERENCE.items()])
def test_inference_waits_once_a_call_and_once_a_token(results, case):
    (result,) = results(case)
    assert "error" not in result, result["error"]
    for name, events in result["calls"].items():
        assert not texts(events, "mixed"), name
        products = texts(events, "float32")
        assert not [text for text in products if not any(f in text for f in FLOAT32)], name
        syncs = events.get("sync", [])
        if name == "condition":
            assert not syncs
        elif not name.startswith("chat"):  # the result is checked to be finite, once
            assert sum(count for _, count, _ in syncs) <= 2, (name, syncs)
        else:
            every_token = [text for text, count, _ in syncs if count > 2]
            assert every_token
            assert not [text for text in every_token if not any(p in text for p in TOKEN)]
            assert len(every_token) <= 2


def texts(events, kind):
    """Texts of the events of a kind."""
    return [text for text, *_ in events.get(kind, [])]
