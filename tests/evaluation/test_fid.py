"""FID and KID: formulas, seeds, small samples, damaged images."""

import json
import shutil

import numpy
import pytest
import torch
from PIL import Image
from torchmetrics.image.kid import poly_mmd

from triptych.evaluation.image_metrics import fid
from triptych.evaluation.image_metrics.feature_space import (
    EncoderSpace,
    FeatureSpace,
    InceptionSpace,
    extract,
)
from triptych.evaluation.image_sources import read_images
from triptych.utils.errors import UserError


class Colours(FeatureSpace):
    """Three features: the mean colour."""

    label, settings = "mean colours", {"features": "Colours"}

    def __init__(self):
        self.batches = []

    def __call__(self, images):
        self.batches.append(len(images))
        return torch.stack(
            [torch.tensor(numpy.array(p)).float().mean((0, 1)) / 255 for p in images]
        )


def normal(number, width, seed, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(number, width, generator=generator) + shift


def plain(colour):
    return Image.new("RGB", (4, 4), colour)


def write_images(folder, number, seed):
    folder.mkdir(parents=True)
    rng = numpy.random.default_rng(seed)
    for n in range(number):
        plain(tuple(int(c) for c in rng.integers(0, 255, 3))).save(folder / f"{n:03}.png")
    return folder


# --- distances ------------------------------------------------------------------------------------


def test_fid_is_the_distance_between_the_gaussians():
    true, made = normal(400, 5, 0), normal(300, 5, 1, shift=0.7) * 1.5
    means = [each.double().mean(0) for each in (true, made)]
    covariances = [torch.cov(each.double().T) for each in (true, made)]
    values, vectors = torch.linalg.eigh(covariances[0])
    root = vectors @ values.sqrt().diag() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ covariances[1] @ root).sqrt().sum()
    expected = (
        (means[0] - means[1]).square().sum() + sum(c.trace() for c in covariances) - 2 * cross
    )
    assert fid.frechet_distance(made, true) == pytest.approx(expected.item(), rel=1e-6)


def test_fid_of_equal_images_is_nothing():
    features = normal(50, 5, 0)
    assert fid.frechet_distance(features, features) == pytest.approx(0, abs=1e-9)


def test_kid_of_whole_sets_is_the_unbiased_mmd():
    true, made = normal(60, 5, 0), normal(60, 5, 1, shift=0.3)
    expected = poly_mmd(true.double(), made.double()).item()
    settings = fid.KidSettings(subset_size=60, subsets=2)
    assert fid.kernel_distance(made, true, settings) == pytest.approx(expected, rel=1e-9)


def test_kid_depends_only_on_its_seed():
    true, made = normal(60, 5, 0), normal(60, 5, 1, shift=0.3)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first, again, other = (
        fid.kernel_distance(made, true, fid.KidSettings(20, 3, seed)) for seed in (0, 0, 1)
    )
    assert first == again != other
    assert torch.equal(before, torch.get_rng_state())


def test_interval_of_kid_holds_the_truth_about_as_often_as_it_says():
    settings = fid.KidSettings(draws=200)
    truth = fid.kernel_distance(
        normal(2000, 3, 100, 0.5), normal(2000, 3, 101), fid.KidSettings(2000, 1)
    )
    ends = [
        fid.kernel_interval(normal(60, 3, 2 * n, 0.5), normal(60, 3, 2 * n + 1), settings)
        for n in range(40)
    ]
    assert sum(low <= truth <= high for low, high in ends) >= 34  # of 40; expected are 38


def test_kid_interval_of_different_sets_excludes_zero():
    low, high = fid.kernel_interval(normal(60, 3, 0, 2.0), normal(60, 3, 1), fid.KidSettings())
    assert 0 < low < high


def test_interval_of_kid_is_that_of_the_plain_formula(monkeypatch):
    monkeypatch.setattr(fid, "BLOCK", 7)
    features, weights = normal(20, 3, 0).double(), torch.ones(1, 20).double()
    kernel = fid.poly_kernel(features, features)
    expected = (kernel.sum() - kernel.trace()) / (20 * 19)
    assert fid._mean_within(features, weights).item() == pytest.approx(expected.item())


def test_too_few_images_for_the_features_are_refused():
    assert "20 images are too few for 30 features" in fid.small_sample(
        normal(20, 30, 0), normal(99, 30, 1)
    )
    assert fid.small_sample(normal(31, 30, 0), normal(99, 30, 1)) is None


# --- reports --------------------------------------------------------------------------------------


def test_report_counts_unreadable_images(tmp_path):
    made, true = write_images(tmp_path / "made", 12, 0), write_images(tmp_path / "true", 9, 1)
    (made / "005.png").write_bytes(b"no image")
    report = fid.score(made, true, Colours(), batch_size=4)
    assert list(report.scores) == ["FID", "KID"]
    assert report.numbers == {"FID": 11, "KID": 11}
    assert report.counts["expected"] == 12 and report.counts["unreadable"] == 1
    assert report.counts["scored"] == 11 and report.counts["reference"] == 9
    assert [item["key"] for item in report.items if item["state"] == "unreadable"] == ["005.png"]
    assert report.settings["kid_subset_size"] == 9
    low, high = report.intervals["KID"]
    assert low < report.scores["KID"] < high
    assert json.loads(report.to_json())["judged_by"] == "mean colours"


def test_batches_change_nothing(tmp_path):
    made, true = write_images(tmp_path / "made", 12, 0), write_images(tmp_path / "true", 9, 1)
    space = Colours()
    one, many = (fid.score(made, true, space, batch_size=size).to_json() for size in (1, 5))
    assert one == many
    assert max(space.batches) == 5


def test_mjhq_layout_is_scored_by_category(tmp_path):
    true = tmp_path / "true"
    for seed, category in enumerate(("animals", "food")):
        write_images(true / category, 6, seed)
        for path in (true / category).iterdir():
            path.rename(path.with_stem(f"{category}-{path.stem}"))
    made = tmp_path / "made"
    shutil.copytree(true, made)
    meta = {p.stem: {"category": p.parent.name, "prompt": "a"} for p in true.rglob("*.png")}
    for path in list(made.rglob("*.png")):  # made images lie flat; the list names categories
        path.rename(made / path.name)
    for folder in (true, made):
        (folder / "meta_data.json").write_text(json.dumps(meta))
    report = fid.score(made, true, Colours())
    names = ["FID", "KID", "FID, animals", "KID, animals", "FID, food", "KID, food"]
    assert list(report.scores) == names
    assert report.scores["FID, food"] == pytest.approx(0, abs=1e-9)
    assert report.numbers["FID, food"] == 6


def test_small_samples_are_warned_of(tmp_path):
    images = [plain((n, n, n)) for n in range(3)]
    report = fid.score(images, images, Colours())
    assert report.settings["warnings"][0].startswith("FID: 3 images are too few for 3 features")


def test_one_image_is_refused():
    with pytest.raises(UserError, match="two images on either side; there are 1"):
        fid.score([plain("red")], [plain("red")] * 3, Colours())


# --- sources --------------------------------------------------------------------------------------


def test_results_name_prompts_and_missing_images(tmp_path):
    folder = write_images(tmp_path / "made", 2, 0)
    (folder / "below").mkdir()
    for sheet in ("grid.png", "below/grid.png"):
        plain("red").save(folder / sheet)
    lines = [{"file": f"{n:03}.png", "prompt": f"prompt {n}"} for n in range(3)]
    (folder / "results.jsonl").write_text("\n".join(map(json.dumps, lines)))
    entries = list(read_images(folder))
    assert [e.key for e in entries] == ["000.png", "001.png", "002.png"]
    assert [e.caption for e in entries] == ["prompt 0", "prompt 1", "prompt 2"]
    assert [e.state for e in entries] == ["", "", "missing"]


def test_captions_from_text_files_and_metadata(tmp_path):
    from triptych.utils.png_metadata import embed_metadata

    plain("red").save(tmp_path / "a.jpg")
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfa red square\r\n")
    embed_metadata(plain("blue"), {"prompt": "a blue square"}).save(tmp_path / "b.png")
    plain("green").save(tmp_path / "c.png")
    captions = [entry.caption for entry in read_images(tmp_path)]
    assert captions == ["a red square", "a blue square", None]


def test_shards_are_read_and_their_damage_named(tmp_path, shapes_folder):
    folder = tmp_path / "shards"
    shutil.copytree(shapes_folder / "eval", folder)
    whole = list(read_images(folder))
    assert len(whole) == 16 and all(e.image is not None and e.caption for e in whole)
    shard = sorted(folder.glob("*.tar"))[0]
    content = shard.read_bytes()
    for cut in (5000, 5120, 5200):  # inside a file, after one, inside a header
        shard.write_bytes(content[:cut])
        *_, last = read_images(shard)
        assert last.image is None and last.state == "unreadable", cut
        assert last.key.startswith(f"{shard.name}/") and "damaged: truncated" in last.note


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [("results.jsonl", "{", "results.jsonl is damaged"), ("meta_data.json", "[1]", "is damaged")],
)
def test_damaged_lists_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        read_images(tmp_path)


def test_empty_and_absent_folders_are_refused(tmp_path):
    with pytest.raises(UserError, match="holds no images"):
        read_images(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        read_images(tmp_path / "no")


def test_a_folder_of_damaged_images_is_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="none of 1 images can be read"):
        extract(Colours(), read_images(tmp_path))
    with pytest.raises(UserError, match="none of 0 images can be read"):
        extract(Colours(), read_images([]))


# --- feature spaces -------------------------------------------------------------------------------


def test_inception_features_of_images_of_any_size(inception_file):
    space = InceptionSpace(inception_file)
    images = [plain("red").resize((40, 30)), plain("blue")]
    together, alone = space(images), space(images[1:])
    assert together.shape == (2, 2048) and together.dtype == torch.float32
    torch.testing.assert_close(together[1], alone[0])
    assert "not comparable" in space.label
    assert space.settings["weights"] == inception_file


def test_other_weight_files_are_refused(tmp_path):
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "other.pth")
    (tmp_path / "damaged.pth").write_bytes(b"no weights")
    for name in ("other.pth", "damaged.pth"):
        with pytest.raises(UserError, match="does not hold the weights of FID's Inception"):
            InceptionSpace(tmp_path / name)
    with pytest.raises(UserError, match="does not exist"):
        InceptionSpace(tmp_path / "none.pth")


def test_features_of_our_own_encoder():
    from triptych.inference.pipeline import UnifiedPipeline

    pipeline = UnifiedPipeline.from_pretrained("tiny", device="cpu")
    images = [plain("red").resize((48, 48)), plain("blue").resize((48, 48))]
    mean, grid = EncoderSpace(pipeline), EncoderSpace(pipeline, pool="grid")
    width, high, wide = pipeline.model.encoder.feature_shape
    assert mean(images).shape == (2, width)
    assert grid(images).shape == (2, width * high * wide)
    assert mean.label.startswith("EvaClip features of tiny, not comparable")
    assert len(mean.settings["features"]["weights_sha256"]) == 64
