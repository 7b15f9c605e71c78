"""The contrast transfer function against another library's numbers and the textbook's formula."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import constants

from inrtomo.ctf import ctf_1d, ctf_2d, ctf_phase, electron_wavelength_A

FREQUENCIES_PER_A = np.array([0.0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4])
# kV, Cs (mm), underfocus (um), amplitude contrast, phase plate (degrees): the argument of the sine, radians.
# Made once with torch-ctf 0.6.0 (teamtomo): minus its calculate_total_phase_shift, float64, as its CTF is -sin(phase).
TABLE: dict[tuple[float, ...], list[float]] = {
    (300, 2.7, 2.0, 0.07, 0): [0.070057, 0.193754, 3.160538, 12.407707, 49.032296, 108.778741, 189.705236],
    (300, 2.7, -0.8, 0.1, 0): [0.100167, 0.050684, -1.138857, -4.880201, -20.209669, -47.053318, -87.352955],
    (200, 2.7, 3.5, 0.1, 0): [0.100167, 0.375922, 6.99003, 27.609441, 109.334451, 242.866766, 424.192332],
    (200, 0.01, 1.2, 0.07, 45): [0.855455, 0.950002, 3.219112, 10.309896, 38.670245, 85.927581, 152.067038],
    (100, 1.6, 0.9, 0.2, 90): [1.772154, 1.876797, 4.38058, 12.110268, 41.595168, 85.63854, 136.593188],
}


@pytest.mark.parametrize("optics", TABLE)
def test_phases_are_those_of_another_library(optics: tuple[float, ...]) -> None:
    voltage, cs, defocus_um, contrast, plate = optics
    offset, slope = ctf_phase(FREQUENCIES_PER_A, voltage, cs, contrast, plate)
    np.testing.assert_allclose(offset + slope * defocus_um * 1e4, np.array(TABLE[optics]), rtol=0, atol=1e-4)
    values = ctf_1d(FREQUENCIES_PER_A, defocus_um * 1e4, voltage, cs, contrast, plate)
    np.testing.assert_allclose(values, np.sin(TABLE[optics]), rtol=0, atol=1e-4)


@pytest.mark.parametrize("voltage_kV", [80, 200, 300])
def test_wavelength_from_the_constants_of_nature(voltage_kV: float) -> None:
    """h / sqrt(2 m e U (1 + e U / 2 m c^2))."""
    energy = constants.e * voltage_kV * 1e3
    rest = constants.m_e * constants.c**2
    metres = constants.h / np.sqrt(2 * constants.m_e * energy * (1 + energy / (2 * rest)))
    assert electron_wavelength_A(voltage_kV) == pytest.approx(metres * 1e10, rel=1e-6)


def chi(k: NDArray[np.float64], defocus_A: float, cs_A: float, wavelength_A: float) -> NDArray[np.float64]:
    """pi lambda dz k^2 - pi/2 Cs lambda^3 k^4, underfocus positive (Reimer & Kohl)."""
    return np.pi * wavelength_A * defocus_A * k**2 - np.pi / 2 * cs_A * wavelength_A**3 * k**4


def test_spherical_aberration_works_against_underfocus() -> None:
    """At Scherzer's defocus the two cancel where k^2 = 2 dz / (Cs lambda^2); with the other sign they never do."""
    wavelength, cs, defocus = 0.0196875, 2.7e7, 800.0
    k = np.linspace(0.0, 0.45, 40)
    offset, slope = ctf_phase(k, 300.0, 2.7, amplitude_contrast=0.0)
    np.testing.assert_allclose(offset + slope * defocus, chi(k, defocus, cs, wavelength), atol=1e-3)
    zero = np.sqrt(2 * defocus / (cs * wavelength**2))
    assert ctf_1d(zero, defocus, 300.0, 2.7, 0.0) == pytest.approx(0.0, abs=1e-3)


def test_astigmatism_has_the_larger_underfocus_in_its_direction() -> None:
    """Spectrum rows are y upwards; at 45 degrees the larger defocus, across it the smaller one."""
    shape, pixel = (256, 256), 2.0
    plane = ctf_2d(shape, pixel, 15000.0, 300.0, 2.7, 0.1, astigmatism_A=2000.0, astigmatism_deg=45.0)
    for row, defocus in ((20, 16000.0), (-20, 14000.0)):
        k = np.hypot(20, 20) / (256 * pixel)
        wanted = np.sin(chi(np.array(k), defocus, 2.7e7, 0.0196875) + np.arcsin(0.1))
        assert plane[row, 20] == pytest.approx(wanted, abs=1e-3)
    assert plane[0, 20] == pytest.approx(float(ctf_1d(20 / 512, 15000.0, 300.0, 2.7, 0.1)), abs=1e-9)
