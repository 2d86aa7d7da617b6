from itertools import pairwise

import pytest
import torch
from torch import nn

from hoyer_export.deploy.explain import blocked_convolutions
from hoyer_export.deploy.export import export_onnx
from hoyer_export.environment import environment_record


def blocked(path, *channels):
    """Export a chain of convolutions through these channel counts and look at it."""
    model = nn.Sequential(*(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(channels)))
    export_onnx(model, torch.zeros(1, channels[0], 8, 8), path)
    return blocked_convolutions(path)


def test_convolutions_with_ragged_channels_fall_out_of_the_blocked_layout(tmp_path):
    aligned, ragged = blocked(tmp_path / "1", 3, 64, 64, 64), blocked(tmp_path / "2", 3, 61, 61, 64)
    assert aligned.total == ragged.total == 3
    if aligned.block is None:
        assert aligned.blocked == ragged.blocked == 0
        pytest.skip("this processor has no blocked layout")
    assert aligned.blocked == 3
    assert ragged.blocked == 1  # only the stem: the others read 61 channels


def test_the_block_is_that_of_the_vector_width(tmp_path):
    flags = environment_record().flags
    if "avx512f" not in flags and "avx2" not in flags:
        pytest.skip("the vector width of this processor is not known")
    assert blocked(tmp_path / "f", 3, 16).block == (16 if "avx512f" in flags else 8)


def test_a_file_without_convolutions_has_none_of_none(tmp_path):
    export_onnx(nn.Linear(4, 4), torch.zeros(1, 4), tmp_path / "f")
    found = blocked_convolutions(tmp_path / "f")
    assert (found.blocked, found.total) == (0, 0)
