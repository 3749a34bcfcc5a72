"""What every test shares: one thread, no global trace, and the marks that need more than a bare machine."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from secure_ml import data


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU or data where there is none."""
    here = Path(os.environ.get(data.VARIABLE, "")) / "MNIST" / "raw"
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        if item.get_closest_marker("data") and not (os.environ.get(data.VARIABLE) and here.exists()):
            item.add_marker(pytest.mark.skip(reason=f"needs data sets where {data.VARIABLE} points"))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tests are compared with runs of one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
