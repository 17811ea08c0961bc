"""What all tests share."""

import pytest
import torch


@pytest.fixture(autouse=True)
def exact_products():
    """On processors with matrix units `d4pg.tune` multiplies in bfloat16: no test inherits that."""
    torch.backends.mkldnn.matmul.fp32_precision = "ieee"
