import pytest
import torch

from aigc_lib.layers.labels import require_labels

LABELS = torch.tensor([0, 2, 1, 2])


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_labels_that_fit_pass(dtype):
    require_labels(LABELS.to(dtype), num_classes=3, batch=4)
    require_labels(LABELS.to(dtype), num_classes=10, batch=4)
    require_labels(LABELS[:0].to(dtype), num_classes=3, batch=0)


def test_a_model_without_classes_is_told_nothing():
    require_labels(None, num_classes=0, batch=4)


def test_no_look_is_taken_where_it_would_wait():
    require_labels(torch.zeros(4, dtype=torch.long, device="meta"), num_classes=3, batch=4)


def test_it_traces_as_one_graph(hook_off):
    def told(x, labels):
        require_labels(labels, num_classes=3, batch=len(x))
        return x + labels

    traced = torch.compile(told, backend="eager", fullgraph=True)
    assert torch.equal(traced(LABELS, LABELS), 2 * LABELS)


@pytest.mark.parametrize(
    ("labels", "num_classes", "error"),
    [
        (None, 3, ValueError),
        (LABELS, 0, ValueError),
        (LABELS[:3], 3, ValueError),
        (LABELS[:, None], 3, ValueError),
        (LABELS + 1, 3, ValueError),
        (LABELS - 1, 3, ValueError),
        (LABELS.float(), 3, TypeError),
        (LABELS > 0, 3, TypeError),
    ],
)
def test_labels_that_do_not_fit_are_refused(hook_off, labels, num_classes, error):
    with pytest.raises(error, match="labels"):
        require_labels(labels, num_classes=num_classes, batch=4)
