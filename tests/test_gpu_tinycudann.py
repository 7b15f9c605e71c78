"""The tinycudann backend with a stand-in for its module: what it is told, scaling, gradients, and its absence."""

import sys
import types

import numpy as np
import pytest
import torch

from inrtomo.errors import InputError
from inrtomo.fields.decoders import mlp
from inrtomo.fields.encodings import HashGrid
from inrtomo.gpu.operations import hash_field

GRID = HashGrid((-20.0, 20.0, -10.0, 10.0, -5.0, 5.0), 1.0, 4, 2)
DECODER = mlp(8, 64, 2)


class StandIn(torch.nn.Module):
    """Waves of the position; ten parameters."""

    made: list = []

    def __init__(self, inputs, outputs, encoding, network):
        super().__init__()
        assert (inputs, outputs) == (3, 1)
        self.made.append((encoding, network))
        self.params = torch.nn.Parameter(torch.zeros(10))

    def forward(self, x):
        assert bool((x >= 0).all()) and bool((x <= 1).all())
        waves = torch.stack([torch.sin(k + (k + 1) * x).sum(dim=1) for k in range(10)], dim=1)
        return (waves @ self.params)[:, None].double()


@pytest.fixture
def field(monkeypatch):
    module = types.ModuleType("tinycudann")
    module.NetworkWithInputEncoding = StandIn  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tinycudann", module)
    return hash_field(GRID, DECODER, 0.5, "cpu", "tinycudann")


def test_it_is_told_the_same_grid_and_decoder(field):
    encoding, network = StandIn.made[-1]
    assert encoding["n_levels"] == 4 and encoding["n_features_per_level"] == 2 and encoding["per_level_scale"] == 2.0
    assert encoding["base_resolution"] == 5  # 40 px in steps of 8
    assert network == {
        "otype": "FullyFusedMLP", "activation": "ReLU", "output_activation": "None", "n_neurons": 64,
        "n_hidden_layers": 2,
    }  # fmt: skip


def test_gradients_are_those_of_the_density(field):
    rng = np.random.default_rng(0)
    parameters = torch.tensor(rng.normal(size=field.n_parameters), dtype=torch.float32)
    points = torch.tensor(rng.uniform((-4, -19, -9), (4, 19, 9), size=(7, 3)), dtype=torch.float32)
    given, weights = torch.tensor(rng.normal(size=7), dtype=torch.float32), np.ones(4, np.float32)
    none, grad = torch.zeros(0), torch.zeros(field.n_parameters)

    def total(p, x):
        return float((field.points(p, none, x, weights).double() * given).sum())

    by_points = field.points_backward(parameters, none, points, weights, given, grad, none)
    for k in range(field.n_parameters):
        step = torch.zeros_like(parameters)
        step[k] = 1e-2
        numeric = (total(parameters + step, points) - total(parameters - step, points)) / 2e-2
        assert numeric == pytest.approx(float(grad[k]), rel=0.02, abs=1e-3)
    move = torch.zeros_like(points)
    move[:, 1] = 5e-2
    numeric = (total(parameters, points + move) - total(parameters, points - move)) / 1e-1
    assert numeric == pytest.approx(float(by_points[:, 1].sum()), rel=0.02, abs=1e-3)
    beyond = torch.tensor([[9.0, 0.0, 0.0]])
    edge = torch.tensor([[5.0, 0.0, 0.0]])
    assert total(parameters, beyond.repeat(7, 1)) == pytest.approx(total(parameters, edge.repeat(7, 1)))
    with pytest.raises(ValueError, match="weights of levels"):
        field.points(parameters, none, points, np.array([1, 1, 0.5, 0], np.float32))


def test_without_it_one_sentence_says_where_it_is(monkeypatch):
    monkeypatch.setitem(sys.modules, "tinycudann", None)
    with pytest.raises(InputError, match="tinycudann cannot be used .* build it"):
        hash_field(GRID, DECODER, 0.5, "cpu", "tinycudann")
