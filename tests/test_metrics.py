"""What counts as correct, against hand-computed logits and errors."""

import numpy as np
import pytest

from configs.evaluation import imagenet_c
from effnet_jax.imagenet.variants import mean_corruption_error
from effnet_jax.metrics import add_outcomes, mean_per_class, metric_sums, no_outcomes

# Best first: image 0: classes 6, 5, 4, 3, 2, 1, 0; image 1: 0, 1, 2, ...; image 2: 3, then 0 ...
LOGITS = np.array([[0, 1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1, 0], [5, 4, 3, 9, 2, 1, 0]], np.float32)


def sums(labels, mask=(1, 1, 1), choices=None):
    found = metric_sums(LOGITS, np.asarray(labels, np.int32), np.asarray(mask, np.float32), choices)
    return {key: float(value) for key, value in found.items()}


def test_one_label_is_right_if_it_is_the_best_or_among_the_best_five():
    found = sums([6, 4, 6])
    log_sum = np.log(np.exp(LOGITS).sum(1))
    loss = (log_sum - LOGITS[[0, 1, 2], [6, 4, 6]]).sum()
    assert found.pop("loss") == pytest.approx(loss, rel=1e-6)
    assert found == {"top1": 1, "top5": 2, "count": 3, "images": 3}


def test_what_fills_up_the_batch_counts_nowhere():
    assert sums([6, 0, 3], mask=[0, 0, 0]) == dict.fromkeys(
        ("top1", "top5", "count", "images", "loss"), 0
    )
    assert sums([6, 0, 3], mask=[1, 0, 0])["top1"] == 1
    assert sums([[6, 0], [0, -1], [3, 1]], mask=[1, 0, 0])["count"] == 1


def test_any_label_of_a_set_is_right_and_an_image_without_any_is_left_out():
    found = sums([[2, 6, -1], [6, 5, -1], [-1, -1, -1]])
    # Image 0: 6 is the best. Image 1: neither is among 0 to 4. Image 2 has none.
    assert found == {"top1": 1, "top5": 1, "count": 2, "images": 3}
    found = sums([[0, 1, 2], [4, 6, 5], [6, 3, -1]])
    # Image 0: 2 is the fifth. Image 1: 4 is the fifth. Image 2: 3 is the best.
    assert found == {"top1": 1, "top5": 3, "count": 3, "images": 3}


def test_a_set_of_one_counts_as_one_label_does():
    labels = np.array([6, 4, 6])
    one = sums(labels)
    one.pop("loss")
    assert sums(labels[:, None]) == one


def test_only_the_classes_chosen_compete():
    choices = np.isin(np.arange(7), [0, 1, 2, 4, 5])
    found = sums([5, 4, 0], choices=choices)
    # Best of the five: 5, 0, 0; all five are the best five.
    chosen = LOGITS[:, choices]
    loss = np.log(np.exp(chosen).sum(1)) - LOGITS[[0, 1, 2], [5, 4, 0]]
    assert found.pop("loss") == pytest.approx(loss.sum(), rel=1e-6)
    assert found == {"top1": 2, "top5": 3, "count": 3, "images": 3}
    assert sums([[6, 4], [6, -1], [0, 3]], choices=choices)["top1"] == 1
    assert sums([5, 4, 0], choices=np.isin(np.arange(7), [0, 1]))["top5"] == 1


def test_ties_are_hits_among_the_best_five_as_in_tensorflow():
    # tf.nn.in_top_k: a class is among the best five if fewer than five have higher predictions, and
    # none of an image whose predictions aren't finite is.
    logits = np.array([[9, 8, 7, 6, 5, 5, 5, 1], [5] * 8, [np.nan] * 8], np.float32)
    for label, top5 in ((4, 2), (6, 2), (7, 1)):
        found = metric_sums(logits, np.full(3, label, np.int32), np.ones(3, np.float32))
        assert float(found["top5"]) == top5
        assert float(found["top1"]) == 0
    first = metric_sums(logits, np.zeros(3, np.int32), np.ones(3, np.float32))
    assert float(first["top1"]) == 2  # The best of NaNs is none, though argmax says the first.


def test_fewer_classes_than_five():
    found = metric_sums(LOGITS[:, :2], np.array([1, 1, 1], np.int32), np.ones(3, np.float32))
    assert (float(found["top1"]), float(found["top5"])) == (1, 3)


def test_outcomes_count_neither_padding_nor_what_may_not_be_predicted():
    labels, mask = np.array([6, 1, 3], np.int32), np.array([1, 1, 0], np.float32)
    found = add_outcomes(no_outcomes(7), LOGITS, labels, mask, 40)
    assert found.counts.sum() == 2 and found.counts[6, 6] == found.counts[1, 0] == 1
    mistakes = found.record, found.label, found.predicted
    assert [int(each[0]) for each in mistakes] == [41, 1, 0]
    assert list(found.probability[:2] > 0) == [True, False]
    assert mean_per_class(np.asarray(found.counts)) == 0.5  # Of classes 6 and 1; 3 has no image.
    found = add_outcomes(no_outcomes(7), LOGITS, labels, mask, 0, np.arange(7) < 2)
    assert found.counts[6, 1] == 1


def test_of_very_many_classes_only_right_and_wrong_are_counted():
    logits = np.zeros((3, 1001), np.float32)
    logits[:, 1000] = 1
    labels = np.array([1000, 1000, 7], np.int32)
    found = add_outcomes(no_outcomes(1001), logits, labels, np.ones(3, np.float32), 0)
    assert found.counts.shape == (1001, 2)
    assert list(found.counts[1000]) == [0, 2] and list(found.counts[7]) == [1, 0]
    assert mean_per_class(np.asarray(found.counts)) == 0.5


def test_corruption_error_is_relative_to_the_reference():
    reference = {"fog": 0.8, "snow": 0.5}
    assert mean_corruption_error({name: [e] * 5 for name, e in reference.items()}, reference) == 1
    # Sums over severities: 0.8 / 1.6 and 0.9 / 1.0; their mean is 0.7.
    errors = {"fog": [0.3, 0.5], "snow": [0.4, 0.5]}
    assert mean_corruption_error(errors, reference) == pytest.approx(0.7)


def test_alexnet_itself_has_a_corruption_error_of_one():
    config = imagenet_c.get_config()
    assert len(config.corruptions) == 15 and tuple(config.severities) == (1, 2, 3, 4, 5)
    alexnet = {name: [error] * 5 for name, error in config.corruptions.items()}
    assert mean_corruption_error(alexnet, config.corruptions) == pytest.approx(1)
