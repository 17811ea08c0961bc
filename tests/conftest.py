"""What all tests share."""

from types import SimpleNamespace

import pytest
import torch


@pytest.fixture(autouse=True)
def exact_products():
    """No test inherits from another that products are bfloat16's, as `d4pg.tune` sets them."""
    torch.backends.mkldnn.matmul.fp32_precision = "ieee"
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # a GPU's convolutions, TF32's otherwise


def tiny(algorithm, **changes):
    """An algorithm's flags: of its preset tiny, but for these."""
    flags = {name: values[0] for name, (_, *values) in algorithm.FLAGS.items()}
    assert set(changes) <= set(flags)
    return SimpleNamespace(**flags | changes)
