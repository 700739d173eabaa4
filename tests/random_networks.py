"""Random state equations of all kinds of layers, for what has to agree on any network."""

import random
from math import prod

import torch
from torch import Tensor

from simplicit.equations.equation import Equation, Summand, Term
from simplicit.equations.layer_phi import Kept, MaxPool, StatePhi
from simplicit.equations.network import StateEquations
from simplicit.equations.phi import Phi, PhiName
from simplicit.equations.weighted_maps import (
    Conv,
    ConvTranspose,
    Dense,
    Gather,
    Sparse,
    WeightedMap,
)

PHIS: list[PhiName] = ["relu", "leaky_relu", "relu6", "tanh", "sigmoid", "gelu", "identity"]

LARGE = 1_000_000
"""Most weights of a matrix, and a thousand times the states from which no layer makes them more."""

Shape = tuple[int, ...]


def equations(seed: int) -> StateEquations:
    """One to five layers on an input of up to three spatial dimensions."""
    return _Draw(seed).network()


class _Draw:
    def __init__(self, seed: int) -> None:
        self.r, self.g = random.Random(seed), torch.Generator().manual_seed(seed)
        self.dtype = self.r.choice([torch.float32, torch.float32, torch.float64])
        self.density = self.r.choice([0.02, 0.1, 0.3, 0.9])

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.g, dtype=self.dtype)

    def weight(self, *shape: int) -> Tensor:
        on = torch.rand(*shape, generator=self.g) < self.density
        return self.normal(*shape) * on / max(1, prod(shape[1:]) * self.density) ** 0.5

    def network(self) -> StateEquations:
        spatial = self.r.choice([0, 0, 1, 2, 2, 2, 3])
        sizes = (self.r.randint(4, 9) for _ in range(spatial))
        shapes: dict[int, Shape] = {-1: (self.r.choice([1, 2, 4, 6]), *sizes)}
        hidden: list[Equation] = []
        for index in range(self.r.randint(1, 5)):
            e, shape = self.equation(f"layer{index}", shapes)
            hidden.append(e)
            shapes[index] = shape
        output, _ = self.equation("output", shapes, output=True)
        every = [term for e in (*hidden, output) for term in e.terms]
        if not every:
            term = Term(-1, Dense(self.weight(3, prod(shapes[-1]))))
            output = Equation("output", (term,), None, Phi("identity"))
        return StateEquations(tuple(hidden), output, shapes[-1], 1)

    def equation(
        self, name: str, shapes: dict[int, Shape], *, output: bool = False
    ) -> tuple[Equation, Shape]:
        source = self.r.choice(list(shapes)[-2:])
        first, shape = self.map(shapes[source])
        terms = [self.term(source, first, prod(shapes[source]))]
        size = prod(shape)
        for other in shapes:
            if self.r.random() < 0.3 and size * prod(shapes[other]) <= LARGE:
                dense = Dense(self.weight(size, prod(shapes[other])))
                terms.append(self.term(other, dense, prod(shapes[other])))
            if shapes[other] == shapes[source] and self.r.random() < 0.3:
                again = type(first)(**{**vars(first), "weight": self.weight(*first.weight.shape)})
                terms.append(self.term(other, again, prod(shapes[other])))
        fixed = [
            Summand(other, self.fixed(size, prod(shapes[other]), 0.5))
            for other in shapes
            if self.r.random() < 0.3 or (shapes[other] == shape and self.r.random() < 0.5)
        ]
        if fixed and self.r.random() < 0.15:
            terms = []
        bias = self.r.choice([None, self.normal(size), self.normal(len(first.weight))])
        if not terms and bias is not None:
            bias = self.normal(size)
        phi: StatePhi = Phi("identity") if output else Phi(self.r.choice(PHIS), slope=0.3)
        if not output and len(shape) in (2, 3) and terms and self.r.random() < 0.3:
            k = len(shape) - 1
            kernel = tuple(self.r.randint(1, min(3, n)) for n in shape[1:])
            padding = tuple(self.r.randint(0, n // 2) for n in kernel)
            stride = tuple(self.r.randint(1, 2) for _ in kernel)
            phi = MaxPool(shape, kernel, stride, padding, (1,) * k, self.r.random() < 0.3)
            shape = phi.output_shape
        elif not output and self.r.random() < 0.1:
            whole = (1, size)
            name, arguments = "layer_norm.default", [{"operand": 0}, [size]]
            phi = Kept(name, arguments, {}, (whole,), (None,), (), (), True, None, whole)
            shape = (size,)
        return Equation(name, tuple(terms), bias, phi, tuple(fixed)), shape

    def term(self, source: int, linear: WeightedMap, size: int) -> Term:
        moved = linear.columns != size or self.r.random() < 0.2
        fixed = self.fixed(linear.columns, size, 0.8) if moved else None
        offset = self.normal(linear.columns) if self.r.random() < 0.2 else None
        return Term(source, linear, fixed, offset)

    def fixed(self, rows: int, columns: int, identity: float) -> Gather | Sparse:
        if rows == columns and self.r.random() < identity:
            return Gather(torch.arange(rows), rows)
        if self.r.random() < 0.6:
            return Gather(torch.randint(-1, columns, (rows,), generator=self.g), columns)
        count = self.r.randint(1, 2 * rows)
        row = torch.randint(0, rows, (count,), generator=self.g).sort().values
        column = torch.randint(0, columns, (count,), generator=self.g)
        return Sparse(row, column, self.normal(count), rows, columns)

    def map(self, shape: Shape) -> tuple[WeightedMap, Shape]:
        channels, sizes = shape[0], shape[1:]
        kind = self.r.choice(["dense", "positions", "conv", "conv", "conv", "transposed"])
        if not sizes or kind == "dense":
            outputs = self.r.randint(1, 12)
            return Dense(self.weight(outputs, prod(shape))), (outputs,)
        if kind == "positions":
            positions, outputs = prod(sizes), self.r.randint(1, 5)
            return Dense(self.weight(outputs, channels), positions), (positions * outputs,)
        kind = "conv" if prod(shape) > LARGE / 1000 else kind
        groups = self.r.choice([g for g in (1, 1, 2, channels) if channels % g == 0])
        outputs = groups * self.r.randint(1, 3)
        spatial = len(sizes)
        dilation = tuple(self.r.choice([1, 1, 2]) for _ in sizes)
        stride = tuple(self.r.choice([1, 1, 2, 3]) for _ in sizes)
        if kind == "conv":
            most = [1 + (n - 1) // d for n, d in zip(sizes, dilation, strict=True)]
            kernel = tuple(self.r.randint(1, min(k, 4)) for k in most)
            padding = tuple((self.r.randint(0, 2), self.r.randint(0, 2)) for _ in sizes)
            weight = self.weight(outputs, channels // groups, *kernel)
            linear = Conv(weight, shape, stride, padding, dilation, groups)
            return linear, linear.output_shape
        kernel = tuple(self.r.randint(1, 3) for _ in range(spatial))
        reach = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        padding = tuple(self.r.randint(0, n // 2) for n in reach)
        steps = zip(stride, dilation, strict=True)
        more = tuple(self.r.randint(0, max(pair) - 1) for pair in steps)
        weight = self.weight(outputs, channels // groups, *kernel)
        linear = ConvTranspose(weight, shape, stride, padding, more, dilation, groups)
        return linear, linear.output_shape
