"""The lines of the GPU benchmark that time whole commands, on the CPU with a tiny series."""

import pytest

from integration.benchmarks.gpu import commands

pytestmark = pytest.mark.slow


def test_every_line_runs() -> None:
    names = tuple(dict.fromkeys(n for size in commands.SIZES.values() for n in size.lines))
    found = dict(commands.timed(commands.Size(48, 15, 11, names), "cpu"))
    assert len(found) == len(names) + 1 and all(seconds > 0 for seconds in found.values())


def test_enlarged_images_align() -> None:
    size = commands.Size(96, 30, 11, ("align --fast", "recon --method fbp"), enlarged=2)
    assert len(dict(commands.timed(size, "cpu"))) == 2
