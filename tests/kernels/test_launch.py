import pytest
import torch

from aigc_lib.kernels import launch


def test_without_a_device_there_is_something_to_go_by():
    assert launch.capability(torch.ones(1)) == (8, 0)
    assert launch.num_processors(torch.ones(1)) == 4


@pytest.mark.gpu
def test_a_device_is_asked():
    x = torch.ones(1, device="cuda")
    assert launch.capability(x) == torch.cuda.get_device_capability()
    assert launch.num_processors(x) > 4
