"""As a plugin, ``pytest -p tests.fake_gpu.stages FILES``: tests that compare stages in torch with those of the CPU have
them on the GPU of `tests.fake_gpu`, instead of the CPU as a device."""

from __future__ import annotations

from functools import partial

import pytest

from tests.fake_gpu import install

GPU = "cuda:0"
FILES = ("test_gpu_early", "test_gpu_fsc", "test_gpu_recon", "test_gpu_registration")


def pytest_configure() -> None:
    install()


def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    from inrtomo.gpu import fsc, registration
    from inrtomo.gpu.early import DeviceWork

    devices: dict[str, dict[str, object]] = {
        "test_gpu_early": {"TORCH": DeviceWork(GPU, 1e9)},
        "test_gpu_fsc": {"WORK": partial(fsc.DeviceFourierWork, device=GPU)},
        "test_gpu_recon": {"DEVICE": GPU},
        "test_gpu_registration": {"TORCH": registration.DeviceRegistrationWork(GPU)},
    }
    for item in items:
        vars(item.module).update(devices[item.module.__name__.rpartition(".")[2]])
