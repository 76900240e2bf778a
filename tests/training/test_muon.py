"""The Muon optimizer."""

from __future__ import annotations

import torch
from torch import nn

from cogvideo.training.muon import Muon, orthogonalise
from cogvideo.training.trainer import TrainerOptions, make_optimizers


def test_orthogonalised_matrices_have_singular_values_near_one() -> None:
    torch.manual_seed(0)
    for shape in ((3, 24, 40), (2, 40, 24)):
        values = torch.linalg.svdvals(orthogonalise(torch.randn(shape)))
        assert float(values.min()) > 0.3
        assert float(values.max()) < 1.4


def test_muon_solves_a_least_squares_problem() -> None:
    torch.manual_seed(0)
    inputs, wanted = torch.randn(64, 12), torch.randn(8, 12)
    weight = nn.Parameter(torch.zeros(8, 12))
    optimizer = Muon([weight], lr=0.05, momentum=0.9)
    losses = []
    for _ in range(200):
        loss = (inputs @ (weight - wanted).T).square().mean()
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.05 * losses[0]


def test_muon_treats_a_convolution_as_a_matrix() -> None:
    torch.manual_seed(0)
    convolution, matrix = nn.Parameter(torch.randn(6, 3, 3, 3)), nn.Parameter(torch.empty(6, 27))
    matrix.data = convolution.detach().flatten(1).clone()
    gradient = torch.randn(6, 27)
    convolution.grad, matrix.grad = gradient.view(6, 3, 3, 3), gradient
    Muon([convolution, matrix], lr=0.1).step()
    torch.testing.assert_close(convolution.flatten(1), matrix)


def test_muon_trains_matrices_and_convolutions_and_adamw_the_rest() -> None:
    module = nn.ModuleDict({"embedding": nn.Embedding(4, 4), "layer": nn.Linear(4, 4), "filter": nn.Conv2d(4, 4, 3)})
    adamw, muon = make_optimizers(module, TrainerOptions(1, muon_learning_rate=1e-2))
    names = {id(p): n for n, p in module.named_parameters()}
    rest, inner = ({names[id(p)] for g in o.param_groups for p in g["params"]} for o in (adamw, muon))
    assert inner == {"layer.weight", "filter.weight"}
    assert rest == {"embedding.weight", "layer.bias", "filter.bias"}
