"""What a linear probe predicts: class probabilities or a scalar, behind one interface of constant, fit and loss."""

from __future__ import annotations

import torch
from torch import Tensor

from probes.solver.minimise import minimise
from probes.solver.rotation import Rotation
from probes.targets.closed import kl_divergence, smoothed


class SoftmaxHead:
    """Log-linear class probabilities. Outputs are linear, [..., question, K]; losses are KL in nats."""

    def constant(self, Y: Tensor) -> Tensor:
        """Output [T, 1, K] of the baseline learnt from training targets [T, n, K]."""
        return smoothed(Y).mean(1, keepdim=True).log()

    def fit(
        self, rotation: Rotation, layer: Tensor, Y: Tensor, penalty: Tensor, start: Tensor | None, tol: float
    ) -> Tensor:
        """Coefficients [B, r + 1, K], the bias last, of problems on the rotated rows of layers [B] and targets Y."""
        fit = minimise(rotation.scores, rotation.spectrum, smoothed(Y), penalty, layer=layer, start=start, tol=tol)
        return torch.cat([fit.weight, fit.bias[:, None]], 1)

    def loss(self, output: Tensor, Y: Tensor) -> Tensor:
        """[..., question]."""
        return kl_divergence(Y, torch.log_softmax(output, -1))


class RidgeHead:
    """The same for a scalar, K = 1: outputs are predictions, losses squared errors."""

    def constant(self, Y: Tensor) -> Tensor:
        return Y.mean(1, keepdim=True)

    def fit(
        self,
        rotation: Rotation,
        layer: Tensor,
        Y: Tensor,
        penalty: Tensor,
        start: Tensor | None,  # noqa: ARG002
        tol: float,  # noqa: ARG002
    ) -> Tensor:
        centre = Y.mean(1, keepdim=True)
        moment = Y.new_empty(len(Y), rotation.spectrum.shape[1], 1)
        for own in range(len(rotation.scores)):  # all targets of a layer in one product, its rows copied for none
            mine = layer == own
            moment[mine] = ((Y - centre)[mine, :, 0] @ rotation.scores[own])[:, :, None]
        return torch.cat([moment / (rotation.spectrum[layer] + penalty[:, None])[:, :, None], centre], 1)

    def loss(self, output: Tensor, Y: Tensor) -> Tensor:
        return (output - Y).square().sum(-1)


Head = SoftmaxHead | RidgeHead
