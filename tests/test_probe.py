"""Probes against scikit-learn, and the commands features and probe on a folder of images."""

import csv
import dataclasses
import shutil

import numpy as np
import pytest
from conftest import GOLDEN
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.neighbors import KNeighborsClassifier

from effnet_jax import probe
from effnet_jax.errors import UserError
from effnet_jax.tools import features as features_tool
from effnet_jax.tools import probe as probe_tool

WEIGHTS = f"--weights={GOLDEN / 'checkpoint_v1'}"


def make(classes, count, size=20, seed=0):
    """Features of classes that overlap; the first column is the same for all."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count).astype(np.int32)
    centres = np.random.default_rng(9).normal(size=(classes, size))
    values = (rng.normal(size=(count, size)) + 0.7 * centres[labels]).astype(np.float32)
    values[:, 0] = 3
    names = tuple(f"c{number}" for number in range(classes))
    files = tuple(f"{seed}/{number}" for number in range(count))
    return probe.Features(values, labels, names, files, "w", "pre_logits", "made/train", "")


@pytest.mark.parametrize("classes", [2, 3])
def test_the_loss_is_scikit_learn_s(classes):
    train = make(classes, 150)
    model = probe.Logistic(train.features, train.labels, classes)
    scaled = model._standardise(train.features).astype(float)
    assert not scaled[:, 0].any()  # It tells nothing.
    np.testing.assert_allclose(scaled[:, 1:].std(0), 1, atol=1e-5)
    for l2 in (1.0, 1e-2, 1e-4):
        peer = LogisticRegression(C=1 / (150 * l2), tol=1e-9, max_iter=2000)
        peer.fit(scaled, train.labels)
        weights = np.concatenate([peer.coef_.T, peer.intercept_[None]])
        assert model.fit(l2) == pytest.approx(model.loss(weights.ravel(), l2)[0], abs=1e-4)
        ours = np.exp(model.log_probabilities(train.features))
        np.testing.assert_allclose(ours, peer.predict_proba(scaled), atol=2e-3)


def test_the_l2_is_chosen_on_held_out_data_and_the_score_is_of_a_fit_to_all_of_it():
    train, test = make(3, 200), make(3, 300, seed=1)
    found, notes = probe.fit_logistic(train, test)
    out = probe.held_out(train.labels, 0.2)
    losses, model = {}, probe.Logistic(train.features[~out], train.labels[~out], 3)
    for l2 in probe.L2:
        model.fit(l2)
        log_p = model.log_probabilities(train.features[out])
        right = (log_p.argmax(1) == train.labels[out]).mean()
        losses[l2] = right, -log_p[np.arange(out.sum()), train.labels[out]].mean()
    best = min(losses, key=lambda l2: (-losses[l2][0], losses[l2][1]))
    assert found.setting == f"l2={best:.3g}" and not notes
    scale = train.features.std(0)
    scaled = [(each.features - train.features.mean(0))[:, 1:] / scale[1:] for each in (train, test)]
    peer = LogisticRegression(C=1 / (200 * best), tol=1e-9, max_iter=2000)
    predicted = peer.fit(scaled[0], train.labels).predict(scaled[1])
    assert found.top1 == pytest.approx((predicted == test.labels).mean(), abs=1e-9)
    expected = balanced_accuracy_score(test.labels, predicted)
    assert found.mean_per_class == pytest.approx(expected, abs=1e-9)
    assert 0.6 < found.top1 < 1 and found.count == 300


def test_a_fit_cut_short_and_an_l2_at_the_end_are_reported(monkeypatch):
    monkeypatch.setattr(probe, "ITERATIONS", 1)
    monkeypatch.setattr(probe, "L2", (1e-4,))
    _, notes = probe.fit_logistic(make(3, 60), make(3, 60, seed=1))
    assert notes == ["l2=0.0001 is at the end of the range", "not converged in 1 iterations"]


def test_45_values_of_l2_as_in_the_paper():
    assert len(probe.L2) == 45
    assert (probe.L2[0], probe.L2[-1]) == (pytest.approx(1e-6), pytest.approx(1e5))


def test_a_share_of_each_class_is_held_out_the_same_again():
    labels = np.repeat([4, 7, 1, 2], [50, 10, 2, 1])
    out = probe.held_out(labels, 0.2)
    assert [int(out[labels == label].sum()) for label in (4, 7, 1, 2)] == [10, 2, 1, 0]
    np.testing.assert_array_equal(out, probe.held_out(labels, 0.2))


def test_neighbours_are_scikit_learn_s():
    train, test = make(2, 120), make(2, 90, seed=1)
    scores = {each.setting: each for each in probe.nearest_neighbours(train, test)}
    assert list(scores) == [f"k={k}" for k in (1, 3, 5, 10, 20, 50)]
    for k in (1, 3, 5):  # Votes of two classes are never equal.
        peer = KNeighborsClassifier(k, metric="cosine").fit(train.features, train.labels)
        predicted = peer.predict(test.features)
        assert scores[f"k={k}"].top1 == (predicted == test.labels).mean()
        expected = balanced_accuracy_score(test.labels, predicted)
        assert scores[f"k={k}"].mean_per_class == pytest.approx(expected)
    few = dataclasses.replace(train, features=train.features[:4], labels=train.labels[:4])
    assert [each.setting for each in probe.nearest_neighbours(few, test)] == ["k=1", "k=3"]


def test_among_equal_votes_the_nearest_neighbour_decides():
    angles = np.radians([0, 10, 20, 30, 60, 61])
    points = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    base = make(3, 6)
    train = dataclasses.replace(base, features=points, labels=np.array([1, 0, 0, 1, 2, 2]))
    test = dataclasses.replace(base, features=points[:1], labels=np.array([1]))
    scores = {each.setting: each.top1 for each in probe.nearest_neighbours(train, test)}
    assert scores == {"k=1": 1, "k=3": 0, "k=5": 1}


def test_bad_input_is_refused():
    one = dataclasses.replace(make(2, 20), labels=np.ones(20, np.int32))
    with pytest.raises(UserError, match="all 20 training images are of one class, 'c1'"):
        probe.fit_logistic(one, one)
    singles = dataclasses.replace(make(2, 2), labels=np.arange(2))
    with pytest.raises(UserError, match="each class has one training image"):
        probe.fit_logistic(singles, singles)
    train = make(3, 20)
    with pytest.raises(UserError, match="of layer pre_logits, and the test's of stage1"):
        probe.match(train, dataclasses.replace(train, layer="stage1"))
    with pytest.raises(UserError, match="1 classes that the training data lacks: c3"):
        probe.match(train, make(4, 20))
    fewer = dataclasses.replace(train, classes=("c2", "c0"), labels=np.arange(20) % 2)
    assert probe.match(train, fewer).labels.tolist() == [2, 0] * 10


def test_a_class_without_training_images_is_never_predicted():
    train, test = make(3, 60), make(3, 60, seed=1)
    kept = train.labels != 1
    train = dataclasses.replace(train, features=train.features[kept], labels=train.labels[kept])
    found, _ = probe.fit_logistic(train, test)
    assert found.top1 <= (test.labels != 1).mean() and found.loss is None


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """DIR/train and DIR/val, of dark and bright squares; one is too wide to be cropped alike."""
    root = tmp_path_factory.mktemp("images")
    for split, count in (("train", 10), ("val", 3)):
        for name, level in (("dark", 40), ("bright", 200)):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = np.full((20, 24, 3), level + number, np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return root


def call(tool, *arguments):
    tool.main(tool.PARSER.parse_args([*map(str, arguments)]))


def test_features_and_a_probe_of_a_folder(images, tmp_path, capsys):
    flags = [WEIGHTS, f"--data_dir={images}"]
    call(features_tool, *flags, "--split=train", f"--out={tmp_path / 'new' / 'train.npz'}")
    call(features_tool, *flags, f"--out={tmp_path / 'val.npz'}")
    output = capsys.readouterr()
    assert output.out.splitlines()[0].endswith("train.npz")
    assert "20 of 20 images" in output.err and "6 of 6 images" in output.err
    train, val = probe.load(tmp_path / "new" / "train.npz"), probe.load(tmp_path / "val.npz")
    assert train.classes == val.classes == ("bright", "dark")
    assert train.labels.tolist() == [0] * 10 + [1] * 10
    assert val.files[0] == str(images / "val" / "bright" / "0.png")
    assert train.features.shape[0] == 20 and train.features.dtype == np.float32
    # From the files, and with --weights: the same.
    call(probe_tool, tmp_path / "new" / "train.npz", f"--test={tmp_path / 'val.npz'}")
    first = capsys.readouterr().out
    call(probe_tool, *flags, f"--csv={tmp_path / 'rows.csv'}")
    assert capsys.readouterr().out == first
    assert "logistic" in first and "100.00%" in first
    with open(tmp_path / "rows.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == ["logistic"] + ["neighbours"] * 5
    assert {row["train_count"] for row in rows} == {"20"} and rows[0]["count"] == "6"
    assert rows[0]["top1"] == rows[0]["mean_per_class"] == "1.0"
    # One file alone: a fifth of each class is the test data.
    call(probe_tool, tmp_path / "new" / "train.npz")
    assert "train[-20%] -> " in (output := capsys.readouterr().out) and " 4 " in output
    call(probe_tool, tmp_path / "val.npz", f"--test={tmp_path / 'val.npz'}")
    assert "6 of the 6 test images are training images too" in capsys.readouterr().err


def test_stages_are_averaged_and_other_layers_refused(images, tmp_path):
    flags = [WEIGHTS, f"--data_dir={images}"]
    call(features_tool, *flags, "--layer=head", f"--out={tmp_path / 'head.npz'}")
    call(features_tool, *flags, f"--out={tmp_path / 'pooled.npz'}")
    head, pooled = (probe.load(tmp_path / name) for name in ("head.npz", "pooled.npz"))
    np.testing.assert_allclose(head.features, pooled.features, rtol=1e-5, atol=1e-6)
    with pytest.raises(UserError, match=r"unknown --layer 'stage9'.*stage6.*stage3\?$"):
        call(features_tool, *flags, "--layer=stage9", f"--out={tmp_path / 'no.npz'}")
    with pytest.raises(UserError, match=r"head\.npz already exists"):
        call(features_tool, *flags, f"--out={tmp_path / 'head.npz'}")
    with pytest.raises(UserError, match=r"features are of layer pre_logits"):
        call(probe_tool, tmp_path / "pooled.npz", f"--test={tmp_path / 'head.npz'}")
    (tmp_path / "text.npz").write_text("no features")
    with pytest.raises(UserError, match=r"can't read features from .*text\.npz"):
        call(probe_tool, tmp_path / "text.npz")
    for arguments in ((), (tmp_path / "pooled.npz", WEIGHTS)):
        with pytest.raises(UserError, match="give either FEATURES"):
            call(probe_tool, *arguments)
    with pytest.raises(UserError, match="--data_dir applies to --weights"):
        call(probe_tool, tmp_path / "pooled.npz", f"--data_dir={images}")


def test_a_folder_of_classes_alone_is_split(images, tmp_path, capsys):
    shutil.copytree(images / "train", tmp_path / "set")
    call(probe_tool, WEIGHTS, f"--data_dir={tmp_path / 'set'}")
    output = capsys.readouterr()
    assert "18 of 20 images" in output.err and "2 of 20 images" in output.err
