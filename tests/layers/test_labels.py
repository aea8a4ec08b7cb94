import pytest
import torch

from aigc_lib.layers.labels import are_used

LABELS = torch.tensor([0, 2, 1, 2])


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_labels_that_fit_are_used(dtype):
    assert are_used(LABELS.to(dtype), num_classes=3, batch=4) is True
    assert are_used(LABELS.to(dtype), num_classes=10, batch=4) is True
    assert are_used(LABELS[:0].to(dtype), num_classes=3, batch=0) is True


def test_a_model_without_classes_uses_none():
    assert are_used(None, num_classes=0, batch=4) is False


def test_no_look_is_taken_where_it_would_wait():
    assert are_used(torch.zeros(4, dtype=torch.long, device="meta"), num_classes=3, batch=4)


def test_it_compiles(hook_off):
    def told(x, labels):
        return x + labels if are_used(labels, num_classes=3, batch=len(x)) else x

    compiled = torch.compile(told, backend="eager", fullgraph=True)
    assert torch.equal(compiled(LABELS, LABELS), 2 * LABELS)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "expected labels from 0 to 2, got None$"),
        (LABELS[:3], r"expected whole labels of shape \(4,\), got torch.int64 of shape \(3,\)$"),
        (
            LABELS[:, None],
            r"expected whole labels of shape \(4,\), got torch.int64 of shape \(4,",
        ),
        (LABELS.float(), r"expected whole labels of shape \(4,\), got torch.float32 of shape \(4,"),
        (LABELS > 0, r"expected whole labels of shape \(4,\), got torch.bool of shape \(4,\)$"),
        (LABELS + 1, "expected labels from 0 to 2, got 1 to 3$"),
        (LABELS - 1, "expected labels from 0 to 2, got -1 to 1$"),
    ],
)
def test_labels_that_do_not_fit_are_refused(hook_off, labels, message):
    with pytest.raises(ValueError, match=message):
        are_used(labels, num_classes=3, batch=4)


def test_labels_that_nobody_asked_for_are_refused():
    with pytest.raises(ValueError, match="expected no labels, the config has num_classes 0, got s"):
        are_used(LABELS, num_classes=0, batch=4)
