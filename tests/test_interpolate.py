"""Points between an input and a near one."""

import torch

from simplicit.interpolate import BETWEEN, NEIGHBOURS, interpolate


def test_each_point_is_between_a_sample_and_one_of_its_nearest():
    random = torch.Generator().manual_seed(0)
    u = torch.rand(200, 3, 4, generator=random, dtype=torch.float64)
    points = interpolate(u)
    assert points.shape == u.shape and torch.equal(points, interpolate(u))
    flat = u.flatten(1)
    distances = torch.cdist(flat, flat)
    for i, point in enumerate(points.flatten(1)):
        near = distances[i].argsort()[1 : NEIGHBOURS + 1]
        # the point is on the segment to one of them, at a part of the way
        along = flat[near] - flat[i]
        part = ((point - flat[i]) * along).sum(1) / along.square().sum(1)
        off = (flat[i] + part[:, None] * along - point).norm(dim=1)
        best = off.argmin()
        assert off[best] < 1e-12 and BETWEEN[0] <= part[best] <= BETWEEN[1]


def test_few_samples():
    one = torch.rand(1, 4)
    assert torch.equal(interpolate(one), one)
    pair = torch.stack([torch.zeros(4), torch.ones(4)])
    first, second = interpolate(pair)
    assert BETWEEN[0] <= first[0] <= BETWEEN[1] and 1 - BETWEEN[1] <= second[0] <= 1 - BETWEEN[0]
