import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Networks in tests are tiny: a second thread costs more than it brings, above all beside other processes."""
    torch.set_num_threads(1)
