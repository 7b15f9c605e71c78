"""SerialEM's metadata."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from inrtomo.errors import InputError
from inrtomo.io.mdoc import read_mdoc

HEAD = "PixelSpacing = 2.5\nDataMode = 1\n\n[T =     Tilt axis angle = 85.3, binning = 4  spot = 8  camera = 2]\n\n"


def section(z: int, tilt: object, date: str = "", more: str = "") -> str:
    return f"[ZValue = {z}]\nTiltAngle = {tilt}\nPixelSpacing = 2.5\n{more}" + (
        f"DateTime = {date}\n\n" if date else "\n"
    )


def test_a_real_one(shared_data: Path) -> None:
    mdoc = read_mdoc(shared_data / "interop" / "mdoc" / "TS_01.mrc.mdoc")
    assert len(mdoc.tilt_deg) == 41 and mdoc.tilt_deg[1] == pytest.approx(3.00113)
    assert mdoc.axis_deg == 85.3 and mdoc.pixel_size_A == 5.4
    assert mdoc.order is not None and mdoc.order.tolist() == list(range(41))
    assert mdoc.movies is not None and mdoc.movies[0] == "TS_01_000_0.0.mrc"


@pytest.mark.parametrize("name", ["frame_set_single", "montage_section", "frame_set_multiple"])
def test_others_are_read_or_refused(shared_data: Path, name: str) -> None:
    try:
        mdoc = read_mdoc(shared_data / "interop" / "mdoc" / f"{name}.mdoc")
    except InputError as error:
        assert name in str(error)
    else:
        assert np.isfinite(mdoc.tilt_deg).all()


@pytest.mark.parametrize("form", ["{:02d}-Jan-24  10:00:00", "2024-Jan-{:02d}  10:00:00", "{:02d}-Jan-2024 10:00:00"])
def test_order_is_that_of_the_time(tmp_path: Path, form: str) -> None:
    days = [3, 1, 2]
    text = HEAD + "".join(section(z, 3.0 * z, form.format(day)) for z, day in enumerate(days))
    (tmp_path / "a.mdoc").write_text(text)
    order = read_mdoc(tmp_path / "a.mdoc").order
    assert order is not None and order.tolist() == [2, 0, 1]


def test_order_from_the_dose_where_there_is_no_time(tmp_path: Path) -> None:
    text = HEAD + "".join(section(z, 3.0 * z, more=f"PriorRecordDose = {d}\n") for z, d in enumerate([6, 0, 3]))
    (tmp_path / "a.mdoc").write_text(text)
    mdoc = read_mdoc(tmp_path / "a.mdoc")
    assert mdoc.order is not None and mdoc.order.tolist() == [2, 0, 1] and mdoc.time_s is None


def test_nothing_tells_the_order(tmp_path: Path) -> None:
    (tmp_path / "a.mdoc").write_text(HEAD + "".join(section(z, z, more="ExposureDose = 3\n") for z in range(3)))
    mdoc = read_mdoc(tmp_path / "a.mdoc")
    assert mdoc.order is None and mdoc.dose_e_A2 is not None and mdoc.dose_e_A2.tolist() == [3, 3, 3]


def test_sections_in_any_order_and_what_others_add(tmp_path: Path) -> None:
    odd = "StagePosition = nan\nVacuum = 3 = 4\nDefocus =\nProtocol = Ångström\n"
    text = "Odd = 1 = 2\n" + HEAD + section(1, 3, more=odd) + section(0, 0, more=odd)
    (tmp_path / "a.mdoc").write_bytes(text.replace("\n", "\r\n").encode("latin-1"))
    assert read_mdoc(tmp_path / "a.mdoc").tilt_deg.tolist() == [0, 3]


@pytest.mark.parametrize(
    "text",
    [
        "",
        HEAD,
        HEAD + section(0, "none"),
        HEAD + section(0, 1) + section(0, 2),
        HEAD + "[ZValue = 0]\nPixelSpacing = 2\n",
        HEAD + section(0, "nan"),
    ],
)
def test_what_is_no_tilt_series(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.mdoc").write_text(text)
    with pytest.raises(InputError, match="a.mdoc"):
        read_mdoc(tmp_path / "a.mdoc")


@pytest.mark.parametrize(
    "times",
    [
        ["2024-Jan-01  11:50:00 AM", "2024-Jan-01  12:10:00 PM", "2024-Jan-01  01:05:00 PM"],
        ["01-Jan-24  11:50:00", "01-Jan-24  12:10:00", "01-Jan-24  01:05:00"],
        ["2024-01-01T11:50:00", "2024-01-01T12:10:00", "2024-01-01T13:05:00"],
    ],
)
def test_clocks_of_twelve_hours(tmp_path: Path, times: list[str]) -> None:
    """Noon is no jump back by half a day: the third image had the dose of the first two."""
    text = HEAD + "".join(section(z, 3.0 * z, time, "ExposureDose = 2\n") for z, time in enumerate(times))
    (tmp_path / "a.mdoc").write_text(text)
    mdoc = read_mdoc(tmp_path / "a.mdoc")
    assert mdoc.time_s is not None and mdoc.time_s.tolist() == [0, 1200, 4500]
    assert mdoc.prior_exposure_e_A2 is not None and mdoc.prior_exposure_e_A2.tolist() == [0, 2, 4]
    assert not mdoc.remarks


@pytest.mark.parametrize(
    ("times", "why"),
    [
        (["01-Mär-24  10:00:00", "01-Mär-24  10:01:00"], "'01-Mär-24  10:00:00'"),
        (["01-Jan-24  10:00:00", ""], "section 1 has no DateTime"),
        (["", ""], "no DateTime"),
        (["01-Jan-24  10:00:00"] * 2, "the same DateTime"),
    ],
)
def test_doses_without_an_order_are_said_to_be_of_no_use(tmp_path: Path, times: list[str], why: str) -> None:
    text = HEAD + "".join(section(z, 3.0 * z, time, "ExposureDose = 2\n") for z, time in enumerate(times))
    (tmp_path / "a.mdoc").write_text(text, encoding="utf-8")
    mdoc = read_mdoc(tmp_path / "a.mdoc")
    assert mdoc.prior_exposure_e_A2 is None
    (remark,) = mdoc.remarks
    assert "a.mdoc" in remark and why in remark


def test_images_of_two_magnifications_have_no_one_pixel_size(tmp_path: Path) -> None:
    text = "".join(f"[ZValue = {z}]\nTiltAngle = {z}\nPixelSpacing = {a}\n" for z, a in enumerate([2.5, 2.5, 5.0]))
    (tmp_path / "a.mdoc").write_text(text)
    mdoc = read_mdoc(tmp_path / "a.mdoc")
    assert mdoc.pixel_size_A is None and "2.5 to 5" in mdoc.remarks[0]


def test_tabs_about_the_equal_signs(tmp_path: Path) -> None:
    text = (HEAD + section(0, 3.0, "01-Jan-24  10:00:00") + section(1, 6.0, "01-Jan-24  10:01:00")).replace(
        " = ", "\t=\t"
    )
    (tmp_path / "a.mdoc").write_text(text)
    mdoc = read_mdoc(tmp_path / "a.mdoc")
    assert mdoc.tilt_deg.tolist() == [3, 6] and mdoc.order is not None and mdoc.order.tolist() == [0, 1]
