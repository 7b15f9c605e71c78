"""The order of axes as labels of MRC headers tell it: our own and those of IMOD."""

from __future__ import annotations

from pathlib import Path

import mrcfile
import numpy as np
import pytest

from inrtomo.io.axis_order import order_in
from inrtomo.io.mrc import read_header, write_stack, write_volume

TILT = "TILT: Tomographic reconstruction                        30-Nov-15  12:29:39"
NEWSTACK = "NEWSTACK: Images copied             , densities scaled  30-Nov-15  13:59:05"
ROTX = "clip: rotx - rotation by -90 around X                   30-Nov-15  13:59:10"
FLIPYZ = "clip: flipyz                                            30-Nov-15  13:59:10"
OURS = "inr-recon: field, hash, imod"


@pytest.mark.parametrize(
    ("labels", "order"),
    [
        ([], None),
        ([NEWSTACK], None),
        ([NEWSTACK, TILT], "imod"),
        ([TILT, NEWSTACK], "imod"),
        ([TILT, NEWSTACK, ROTX], "xyz"),
        ([TILT, FLIPYZ, NEWSTACK], "xyz"),
        ([ROTX], None),
        ([TILT, ROTX, ROTX], None),
        ([OURS], "imod"),
        ([OURS, ROTX], "xyz"),
        (["inr-infer: a, b, imod.pt, xyz"], "xyz"),
        (["inr-align: fbp, imod"], "imod"),
        (["inr-recon: standard deviation of 3 fits"], None),
        (["Simulated by inr-simulate"], "xyz"),
        (["Created by mrcfile.py"], None),
    ],
)
def test_what_labels_tell(labels: list[str], order: str | None) -> None:
    assert order_in(labels) == order


def test_labels_and_kind_are_read_from_the_header(tmp_path: Path) -> None:
    values = np.zeros((3, 4, 5), np.float32)
    volume = read_header(write_volume(tmp_path / "volume.mrc", values, 5.0, label=OURS))
    assert volume.labels == (OURS,) and not volume.sections_are_images
    assert read_header(write_stack(tmp_path / "stack.mrc", values, 5.0)).sections_are_images
    with mrcfile.new(tmp_path / "theirs.mrc", values) as file:
        file.add_label(NEWSTACK[:50])
        file.set_image_stack()
    theirs = read_header(tmp_path / "theirs.mrc")
    assert theirs.sections_are_images and theirs.labels[-1] == NEWSTACK[:50].strip() and len(theirs.labels) == 2
    with mrcfile.open(tmp_path / "theirs.mrc", "r+") as file:
        file.set_volume()
        file.header.ispg = 0  # as many programs leave it, for stacks and volumes alike
    assert not read_header(tmp_path / "theirs.mrc").sections_are_images
