"""ImplicitModel: x = φ(Ax + Bu + b), y = Cx + Du + d as an `nn.Module`.

El Ghaoui, Gu, Travacca, Askari, Tsai, "Implicit Deep Learning", SIAM J. Math. Data Sci. 3, 2021.
"""

from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from simplicit._types import Inputs, Outputs
from simplicit.equations.forward import predict
from simplicit.equations.network import StateEquations
from simplicit.equations.operators import BlockOperator, constants, nonzeros, with_weights
from simplicit.errors import InputError
from simplicit.model.certificate import Certificate, nilpotence, round_toward_zero, well_posedness
from simplicit.model.equilibrium import (
    Block,
    Equilibrium,
    exact,
    exact_pass,
    implicit_solve,
    require_block_triangular,
)
from simplicit.model.feedforward import feedforward
from simplicit.model.fixed_point import MAX_STEPS, TOLERANCE
from simplicit.model.to_torch import as_modules, load_into

Structure = Literal["full", "triangular", "layered"]


class ImplicitModel(nn.Module):
    """A network whose hidden states are an equilibrium.

    Args:
        A: States to states (n, n).
        B: Inputs to states (n, p).
        C: States to outputs (q, n).
        D: Inputs to outputs (q, p).
        b: Bias of the states (n,), or None.
        d: Bias of the outputs (q,), or None.
        blocks: Hidden layers in the order of x: last hidden layer first.
        structure: `full` (any A), `triangular` (a layer uses earlier layers and the input) or
            `layered` (only the connections of the explicit net).
        input_shape: Shape of one sample, with p entries.
        reference_nonzeros: N0, the non-zero weights of the explicit net, for `sparsity`.
        weights: ω (n,) of the ball that A was solved under; `full` only.

    Raises:
        InputError: On shapes, dtypes or a structure that do not fit, NaN or infinity in a weight.

    Example:
        x = relu(x / 2 + u), y = x, hence y = 2u for u > 0:

        >>> from simplicit.equations.phi import Phi
        >>> one = torch.ones(1, 1)
        >>> model = ImplicitModel(
        ...     one / 2, one, one, 0 * one, blocks=[Block("fc", 1, Phi("relu"))],
        ...     structure="full", input_shape=(1,), reference_nonzeros=2,
        ... )
        >>> print(model.certificate)
        well-posed: ‖A‖∞,ω = 0.5, margin 0.5 (weighted norm)
        >>> model(torch.tensor([[3.0], [-1.0]])).detach().round(decimals=3)
        tensor([[6.],
                [0.]])
    """

    structure: Structure
    A: Any  # nn.Parameter, or BlockOperator with the same `to_dense()` and products
    B: Any
    C: Any
    D: Any
    b: Tensor | None
    d: Tensor | None
    equations: StateEquations | None = None
    _places: list[list[int]]

    def __init__(
        self,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor,
        b: Tensor | None = None,
        d: Tensor | None = None,
        *,
        blocks: Sequence[Block],
        structure: Structure,
        input_shape: Sequence[int],
        reference_nonzeros: int,
        weights: Tensor | None = None,
    ) -> None:
        nn.Module.__init__(self)
        n, p, q = sum(block.size for block in blocks), prod(input_shape), len(C)
        if structure not in ("full", "triangular", "layered"):
            raise InputError(f"structure {structure!r}: accepted are full, triangular, layered")
        if n < 1 or reference_nonzeros < 1:
            raise InputError("an implicit model needs a hidden state and reference_nonzeros >= 1")
        for name, value, shape in (
            ("A", A, (n, n)),
            ("B", B, (n, p)),
            ("C", C, (q, n)),
            ("D", D, (q, p)),
            ("b", b, (n,)),
            ("d", d, (q,)),
        ):
            _require(name, value, shape, A.dtype)
        if structure != "full":
            require_block_triangular(A, blocks)
        if weights is not None:
            weights = weights.detach().cpu().double()
            _require("weights", weights, (n,), torch.float64)
            if structure != "full" or not (weights > 0).all():
                raise InputError("weights: accepted are n positive numbers, for structure 'full'")
        self.n, self.p, self.q = n, p, q
        self.blocks, self.structure = tuple(blocks), structure
        self.input_shape, self.reference_nonzeros = tuple(input_shape), reference_nonzeros
        # ω keeps float64 whatever dtype the model is cast to, so it is not a buffer.
        self.weights = weights
        # Adding 0.0 copies, and turns the −0.0 that masked weights are full of into 0.0.
        self.A, self.B, self.C, self.D = (nn.Parameter(t.detach() + 0.0) for t in (A, B, C, D))
        self.b, self.d = (t if t is None else nn.Parameter(t.detach() + 0.0) for t in (b, d))

    @classmethod
    def from_equations(
        cls, equations: StateEquations, reference_nonzeros: int | None = None
    ) -> "ImplicitModel":
        """Make the layered model of state equations; A, B, C, D are grids of their maps.

        Args:
            equations: The layers, with the weights that the model is to have; they are copied.
            reference_nonzeros: N0, by default that of the equations.

        Returns:
            The model. Its parameters are `learned`, the weights, and `biases`, a number per channel
            where the bias is the same at all positions. NaN or infinity in one is an `InputError`.
        """
        model = cls.__new__(cls)
        nn.Module.__init__(model)
        dtype = equations.like.dtype
        learned: dict[int, nn.Parameter] = {}
        biases: list[nn.Parameter] = []
        for e in equations.layers:
            for term in e.terms:
                _require(f"the weight of {e.name}", term.weight, tuple(term.weight.shape), dtype)
                learned.setdefault(id(term.weight), nn.Parameter(term.weight.detach() + 0.0))
            if e.bias is not None:
                _require(f"the bias of {e.name}", e.bias, tuple(e.bias.shape), dtype)
                channel = e.channel_bias if e.terms else None
                biases.append(nn.Parameter((e.bias if channel is None else channel).detach() + 0.0))
        model.learned = nn.ParameterList(learned.values())
        model.biases = nn.ParameterList(biases)
        places = {key: index for index, key in enumerate(learned)}
        model._places = [[places[id(t.weight)] for t in e.terms] for e in equations.layers]
        model.n, model.p, model.q = equations.n, equations.p, equations.q
        model.blocks = tuple(Block(e.name, e.states, e.phi) for e in equations.hidden[::-1])
        model.structure, model.input_shape, model.weights = "layered", equations.input_shape, None
        model.reference_nonzeros = reference_nonzeros or equations.nonzeros
        model._bind(equations)
        return model

    # the equations with this model's parameters in them
    def _bind(self, equations: StateEquations) -> None:
        weights = [[self.learned[place] for place in places] for places in self._places]
        biases = iter(self.biases)
        moved = [None if e.bias is None else next(biases) for e in equations.layers]
        bound = with_weights(equations, weights, moved)
        self.equations = bound
        self.A, self.B = BlockOperator(bound, "A"), BlockOperator(bound, "B")
        self.C, self.D = BlockOperator(bound, "C"), BlockOperator(bound, "D")

    def _apply(self, fn: Any, recurse: bool = True) -> "ImplicitModel":
        nn.Module._apply(self, fn, recurse)
        if self.equations is not None:
            with torch.no_grad():
                self._bind(self.equations.changed(fn))
        return self

    def forward(self, u: Tensor) -> Outputs:
        """Predict, or raise `NotConvergedError` if any sample has no equilibrium.

        Args:
            u: Inputs (m, *input_shape); moved to the dtype and device of the weights.

        Returns:
            y (m, q), e.g. logits; differentiable in u and in the weights.
        """
        if self.equations is not None:
            y = predict(self.equations, self._flat(u))
            if not (finite := y.isfinite().all(1)).all():
                self.equilibrium(u[~finite]).require_converged()
            return y
        found = self.equilibrium(u)
        found.require_converged()
        y = found.states @ self.C.T + self._flat(u) @ self.D.T
        return y if self.d is None else y + self.d

    def equilibrium(
        self,
        u: Tensor,
        *,
        method: Literal["exact", "anderson", "picard"] | None = None,
        tol: float | None = None,
        max_steps: int = MAX_STEPS,
        history: bool = False,
    ) -> Equilibrium:
        """Solve for the states and report on every sample instead of raising.

        Args:
            u: Inputs (m, *input_shape); moved to the dtype and device of the weights.
            method: `exact` (default unless `full`), `anderson` (default for `full`) or `picard`.
            tol: Largest accepted residual of an iteration; 5e-6 in float32, 1e-10 in float64.
            max_steps: Largest number of evaluations of φ(Ax + Bu + b).
            history: Whether an iteration records the residual of every step.

        Returns:
            States, residual, steps and status per sample.

        Raises:
            InputError: On a method the structure does not have.
        """
        method = method or ("anderson" if self.structure == "full" else "exact")
        accepted = ("anderson", "picard") if self.structure == "full" else _METHODS
        accepted = accepted if self.equations is None else ("exact",)
        if method not in accepted:
            raise InputError(
                f"method {method!r}: accepted for structure {self.structure!r} are "
                + ", ".join(accepted)
            )
        if self.equations is not None:
            return exact(self.equations, self._flat(u))
        c = self._flat(u) @ self.B.T
        c = c if self.b is None else c + self.b
        if method == "exact":
            return exact_pass(self.A, c, self.blocks)
        return implicit_solve(
            self.A, c, self.blocks, method=method, tol=tol, max_steps=max_steps, history=history
        )

    @property
    def nonzeros(self) -> int:
        """Non-zero entries of A, B, C and D; shared weights count once, biases not at all."""
        if self.equations is not None:
            return nonzeros(self.equations)
        return sum(int(torch.count_nonzero(t)) for t in (self.A, self.B, self.C, self.D))

    @property
    def parameters_count(self) -> int:
        """Stored entries of A, B, C and D, zeros included; of grids of maps, their weights."""
        if self.equations is not None:
            return sum(weight.numel() for weight in self.learned)
        return sum(t.numel() for t in (self.A, self.B, self.C, self.D))

    @property
    def sparsity(self) -> float:
        """1 − nonzeros / N0; negative if the model has more weights than the explicit net."""
        return 1.0 - self.nonzeros / self.reference_nonzeros

    @property
    def certificate(self) -> Certificate:
        """Well-posedness of the current weights, computed anew in float64 at every access."""
        if self.equations is not None:
            return nilpotence(self.equations)
        lipschitz = [block.phi.lipschitz for block in self.blocks for _ in range(block.size)]
        return well_posedness(self.A, torch.tensor(lipschitz, dtype=torch.float64), self.weights)

    def cast(self, dtype: torch.dtype) -> "ImplicitModel":
        """Copy the model to another dtype without loosening its certificate.

        `.float()` rounds to nearest and may raise ‖A‖∞,ω above κ; here A is rounded toward zero.

        Args:
            dtype: `torch.float32` or `torch.float64`.

        Returns:
            A new model.
        """
        if self.equations is not None:  # of a nilpotent A no bound is given away
            cast = self.equations.changed(lambda t: t.to(dtype) if t.is_floating_point() else t)
            return ImplicitModel.from_equations(cast, self.reference_nonzeros)
        rest = [t if t is None else t.to(dtype) for t in (self.B, self.C, self.D, self.b, self.d)]
        return ImplicitModel(
            round_toward_zero(self.A.detach(), dtype),
            *rest,  # pyright: ignore[reportArgumentType]
            blocks=self.blocks,
            structure=self.structure,
            input_shape=self.input_shape,
            reference_nonzeros=self.reference_nonzeros,
            weights=self.weights,
        )

    def to_explicit(self) -> nn.Module:
        """Write a triangular or layered model as plain torch modules, see `feedforward`.

        Returns:
            A module with the same outputs that does not need simplicit.

        Raises:
            InputError: For a `full` model, which has no finite number of layers.
        """
        if self.structure == "full":
            raise InputError(
                "to_explicit: a full A feeds states back, so no finite stack of layers computes "
                "the equilibrium; accepted are structure 'triangular' and 'layered'"
            )
        if self.equations is not None:
            return as_modules(self.equations)
        with torch.no_grad():
            AB, CD = torch.cat([self.A, self.B], 1), torch.cat([self.C, self.D], 1)
            return feedforward(AB, CD, self.b, self.d, self.blocks, self.input_shape)

    def load_into(self, net: nn.Module) -> None:
        """Write a layered model's weights into the network it came from, or a copy of it.

        Batch norm is taken out of the weights again, and biases go into its shift or the layer's
        own.

        Args:
            net: The trained network, with its running statistics; changed in place, and left as
                it was if something does not fit.

        Raises:
            InputError: If the model is not made of its layers, or something does not fit.
        """
        if self.equations is None:
            raise InputError(
                "load_into: the model is made of A, B, C, D alone, without the names of the "
                "network's parameters; accepted are layered models of equations"
            )
        load_into(self.equations, net)

    def save(self, directory: str | Path) -> None:
        """Write `model.safetensors` and `model.json`, see `archive.save`."""
        from simplicit.model.archive.format import save

        save(self, directory)

    def extra_repr(self) -> str:
        """Describe the model in `print`.

        Returns:
            Structure, sizes and sparsity.
        """
        sizes = f"p={self.p}, n={self.n}, q={self.q}"
        return f"{self.structure}, {sizes}, nonzeros={self.nonzeros}, sparsity={self.sparsity:.3f}"

    def _flat(self, u: Tensor) -> Inputs:
        if tuple(u.shape[1:]) != self.input_shape:
            accepted = ", ".join(["m", *map(str, self.input_shape)])
            raise InputError(f"input of shape {tuple(u.shape)}: accepted is ({accepted})")
        return u.to(self.A if self.equations is None else self.equations.like).flatten(1)

    def __getattr__(self, name: str) -> Any:
        if name in ("b", "d") and self.equations is not None:
            return constants(self.equations)["bd".index(name)]
        return nn.Module.__getattr__(self, name)


_METHODS = ("exact", "anderson", "picard")


def _require(name: str, value: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if value is None:
        return
    if tuple(value.shape) != shape:
        raise InputError(f"{name} of shape {tuple(value.shape)}: accepted is {shape}")
    if value.dtype != dtype or dtype not in TOLERANCE:
        raise InputError(f"{name} of {value.dtype}: accepted is float32 or float64, the same as A")
    if not value.isfinite().all():
        bad = int((~value.isfinite()).sum())
        raise InputError(f"{name} holds {bad} values that are NaN or infinite: solve again")
