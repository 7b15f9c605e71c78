"""The tinycudann backend with a stand-in for its module: what it is told, where it looks, its parts, its absence.

What it has in common with our kernels is tested in `test_gpu_field_interface`.
"""

import sys

import numpy as np
import pytest
import tinycudann_stand_in as stand_in  # type: ignore[import-not-found]
import torch

from inrtomo.errors import InputError
from inrtomo.fields.decoders import Decoder, linear, mlp
from inrtomo.fields.encodings import HashGrid
from inrtomo.gpu import tinycudann_field
from inrtomo.gpu.operations import hash_field

GRID = HashGrid((-20.0, 20.0, -10.0, 10.0, -5.0, 5.0), 1.0, 4, 4)
DECODER = mlp(16, 64, 2)
ALL = np.ones(4, np.float32)


@pytest.fixture
def field(monkeypatch):
    monkeypatch.setitem(sys.modules, "tinycudann", stand_in)
    stand_in.BATCHES.clear()
    return hash_field(GRID, DECODER, 0.5, "cpu", "tinycudann")


def parameters(field):
    return torch.tensor(np.random.default_rng(0).normal(scale=0.5, size=field.n_parameters), dtype=torch.float32)


def test_it_is_told_the_same_grid_and_decoder(monkeypatch):
    told = []
    monkeypatch.setitem(sys.modules, "tinycudann", stand_in)

    def listening(kind):
        def made(*given):
            told.append(given)
            return kind(*given)

        return made

    for name in ("Encoding", "Network", "NetworkWithInputEncoding"):
        monkeypatch.setattr(stand_in, name, listening(getattr(stand_in, name)))
    hash_field(GRID, DECODER, 0.5, "cpu", "tinycudann")
    encoding = {
        "otype": "HashGrid", "n_levels": 4, "n_features_per_level": 4, "log2_hashmap_size": 22, "per_level_scale": 2.0,
        "base_resolution": 5,  # 40 px in steps of 8
    }  # fmt: skip
    network = {
        "otype": "FullyFusedMLP", "activation": "ReLU", "output_activation": "None", "n_neurons": 64,
        "n_hidden_layers": 2,
    }  # fmt: skip
    assert told[:2] == [(3, encoding), (16, 1, network)] and (3, 1, encoding, network) in told
    assert hash_field(GRID, linear(16), 0.5, "cpu", "tinycudann")._network.shapes == [(16, 16)]


def test_it_looks_where_the_points_are(monkeypatch):
    monkeypatch.setitem(sys.modules, "tinycudann", stand_in)
    monkeypatch.setitem(stand_in.PRECISION, "of", torch.float)
    field = hash_field(GRID, linear(16), 0.5, "cpu", "tinycudann")
    flat = torch.zeros(field.n_parameters)
    flat[0] = 1.0  # the output is the first feature of the first level
    vertices = np.arange(5)  # along each axis, the first (z) fastest
    index = np.broadcast_to(vertices + 10.0 * vertices[:, None] + 100.0 * vertices[:, None, None], (5, 5, 5))
    flat[field._n_weights : field._n_weights + 4 * 125 : 4] = torch.tensor(index.ravel(), dtype=torch.float32)
    points = np.array([[-5.0, -20.0, -10.0], [3.0, 7.0, -2.5], [5.0, 14.0, 9.0]])
    first = np.array([1, 0, 0, 0], np.float32)
    found = field.points(flat, torch.zeros(0), torch.tensor(points, dtype=torch.float32), first)
    place = (points - [-5, -20, -10]) / 40 * 4 + 0.5
    np.testing.assert_allclose(found, 0.5 * np.logaddexp(0, place @ [1, 10, 100]), rtol=1e-5)


def test_the_fused_module_and_its_parts_agree(field):
    flat, none = parameters(field), torch.zeros(0)
    rng = np.random.default_rng(1)
    points = torch.tensor(rng.uniform((-5, -20, -10), (5, 20, 10), size=(300, 3)), dtype=torch.float32)
    given, made = torch.tensor(rng.normal(size=300), dtype=torch.float32), []
    for whole in (field._whole, None):
        stand_in.BATCHES.clear()
        field._whole, grad = whole, torch.zeros_like(flat)
        density = field.points(flat, none, points, ALL)
        by_points = field.points_backward(flat, none, points, ALL, given, grad, none)
        assert len(stand_in.BATCHES) == (4 if whole is None else 2)
        made.append((density, by_points, grad))
    for one, two in zip(*made, strict=True):
        assert float((one - two).norm()) < 0.01 * float(one.norm()) and float(one.norm()) > 0
    assert made[0][0].dtype == torch.float32


def test_a_lattice_is_taken_some_rows_at_a_time(field, monkeypatch):
    flat, none = parameters(field), torch.zeros(0)
    axes = np.linspace(-4, 4, 3), np.linspace(-19, 19, 7), np.linspace(-9, 9, 11)
    plan, made = field.plan(axes, ALL, np.full((3, 7), 4)), []
    for most in (2**20, 50):
        monkeypatch.setattr(tinycudann_field, "POINTS_AT_ONCE", most)
        stand_in.BATCHES.clear()
        grad = torch.zeros_like(flat)
        rho = field.lattice(flat, none, plan)
        field.lattice_backward(flat, none, plan, torch.ones_like(rho), grad, none)
        assert max(stand_in.BATCHES) <= most
        made.append((rho, grad))
    assert len(stand_in.BATCHES) == 2 * 6
    torch.testing.assert_close(made[1][0], made[0][0])
    assert float((made[1][1] - made[0][1]).norm()) < 0.01 * float(made[0][1].norm())


def test_without_it_one_sentence_says_where_it_is(monkeypatch):
    monkeypatch.setitem(sys.modules, "tinycudann", None)
    with pytest.raises(InputError, match="tinycudann cannot be used .* build it"):
        hash_field(GRID, DECODER, 0.5, "cpu", "tinycudann")


def test_gradients_of_many_points_fit_half_precision(field, monkeypatch):
    """Summed over the points as tinycudann sums them, 128 times too large, they stay below 65504."""
    flat, none = parameters(field), torch.zeros(0)
    points = torch.zeros(40_000, 3)
    handed, asked = [], torch.autograd.grad

    def listening(value, wanted, slopes):
        handed.append(slopes)
        return asked(value, wanted, slopes)

    monkeypatch.setattr(torch.autograd, "grad", listening)
    grads = [torch.zeros_like(flat) for _ in range(2)]
    for grad, size in zip(grads, (1.0, 1e6), strict=True):
        field.points_backward(flat, none, points, ALL, torch.full((len(points),), size), grad, none)
    assert all(128 * float(slopes.double().abs().sum()) < 65504 / 4 for slopes in handed)
    assert all(float(slopes.abs().min()) > torch.finfo(torch.half).tiny for slopes in handed)
    torch.testing.assert_close(grads[1] / 1e6, grads[0], rtol=1e-3, atol=0.0)


def test_where_there_is_no_gpu_one_sentence_says_so(monkeypatch, tmp_path):
    (tmp_path / "tinycudann.py").write_text("raise OSError('libcuda.so.1: no such file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tinycudann", raising=False)
    with pytest.raises(InputError, match="installed, but finds no driver or no GPU .*libcuda"):
        hash_field(GRID, DECODER, 0.5, "cpu", "tinycudann")


def test_hidden_layers_of_two_widths_are_refused(field):
    with pytest.raises(ValueError, match="one width"):
        hash_field(GRID, Decoder((16, 64, 32, 1)), 0.5, "cpu", "tinycudann")
