"""What all tests share."""

import pytest
import torch


@pytest.fixture(autouse=True)
def exact_products():
    """No test inherits from another that products are bfloat16's, as `d4pg.tune` sets them."""
    torch.backends.mkldnn.matmul.fp32_precision = "ieee"
