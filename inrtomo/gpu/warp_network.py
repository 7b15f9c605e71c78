"""Local motion by one small network per tilt on a device: `inrtomo.deformation_network.Network` and its optimiser."""

from __future__ import annotations

import numpy as np
import torch

from inrtomo.deformation_network import Network
from inrtomo.fields import Adam
from inrtomo.gpu import operations

Tensor = torch.Tensor

GROUP = "network"


class WarpNetwork:
    """A copy of networks and their Adam moments.

    Args:
        network, adam: what is copied, and what `pull` writes back to.
    """

    def __init__(self, network: Network, adam: Adam, device: str) -> None:
        self.network, self.adam, self.device = network, adam, device
        state = adam.state_dict()
        self.parameters, self.positions = (
            torch.tensor(network.parameters(), device=device),
            network.positions.to(device),
        )
        self.first, self.second = (torch.tensor(state[name], device=device) for name in ("first", "second"))
        self.count = torch.tensor(float(state["count"][0]), dtype=torch.float64, device=device)

    def step(self, gradient: Tensor, rate: Tensor) -> Tensor:
        """One Adam step along the gradient ``(n_tilts, 2 * ny * nx)`` of the node vectors; these, mean 0, after it."""
        network, adam, n = self.network, self.adam, self.network.n_tilts
        by_nodes = gradient.reshape(n, 2, len(network.y), len(network.x)).permute(0, 2, 3, 1).float()
        flat = self.parameters.detach().requires_grad_()
        (slope,) = torch.autograd.grad(network.run(flat.view(n, -1), self.positions), flat, by_nodes)
        self.count += 1
        size = adam.rates[GROUP] * rate / (1 - adam.beta1**self.count)
        steps = torch.stack([size, (1 - adam.beta2**self.count).rsqrt()]).float()
        operations.of(self.device).adam(
            self.parameters, slope, self.first, self.second, steps, adam.beta1, adam.beta2, adam.epsilon
        )
        with torch.no_grad():
            nodes = network.run(self.parameters.view(n, -1), self.positions).double()
        return nodes - nodes.mean(dim=0)

    def pull(self) -> None:
        """Write the present state back."""
        self.network.parameters()[:] = self.parameters.cpu().numpy()
        first, second = (moments.cpu().numpy() for moments in (self.first, self.second))
        self.adam.load_state_dict({"first": first, "second": second, "count": np.array([int(self.count)])})
