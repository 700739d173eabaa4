"""ImplicitModel: x = φ(Ax + Bu + b), y = Cx + Du + d as an `nn.Module`.

El Ghaoui, Gu, Travacca, Askari, Tsai, "Implicit Deep Learning", SIAM J. Math. Data Sci. 3, 2021.
"""

import warnings
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from simplicit._types import Inputs, Outputs
from simplicit.equations.forward import predict
from simplicit.equations.interface import packed
from simplicit.equations.matrices import from_matrices
from simplicit.equations.network import StateEquations
from simplicit.equations.operators import BlockOperator, constants, nonzeros, with_weights
from simplicit.equations.stacked import Block
from simplicit.errors import InputError
from simplicit.model.archive import equations_json
from simplicit.model.archive.format import write
from simplicit.model.certificate import Certificate, certificate_of, round_toward_zero
from simplicit.model.equilibrium import Equilibrium, exact, iterated
from simplicit.model.fixed_point import MAX_STEPS, TOLERANCE
from simplicit.model.into_network import load_into
from simplicit.model.to_torch import as_modules

Structure = Literal["full", "triangular", "layered"]
STRUCTURES = ("full", "triangular", "layered")


class ImplicitModel(nn.Module):
    """A network whose hidden states are an equilibrium.

    It holds the network's equations, and A, B, C, D and b, d are views of them. Its parameters are
    `learned`, the weights of the equations' terms, and `biases`, a number per channel where the
    bias is the same at all positions.

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
        omega: ω (n,) of the ball that A was solved under; `full` only.
        weights: Former name of `omega`.

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
    n: int
    p: int
    q: int
    blocks: tuple[Block, ...]
    input_shape: tuple[int, ...]
    reference_nonzeros: int
    omega: Tensor | None
    learned: nn.ParameterList
    biases: nn.ParameterList

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
        omega: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> None:
        n, p, q = sum(block.size for block in blocks), prod(input_shape), len(C)
        _require_structure(structure)
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
            if value is not None:
                _require(name, value, shape, A.dtype)
        if weights is not None:
            warnings.warn(
                "ImplicitModel(weights=...) is called omega=... now",
                DeprecationWarning,
                stacklevel=2,
            )
        # the same tensor twice is no shared weight
        A, B, C, D = (t.detach().clone() for t in (A, B, C, D))
        equations = from_matrices(
            A, B, C, D, b, d,
            blocks=blocks,
            structure=structure,
            input_shape=tuple(input_shape),
            nonzeros=reference_nonzeros,
        )  # fmt: skip
        self._take(equations, reference_nonzeros, structure, weights if omega is None else omega)

    @classmethod
    def from_equations(
        cls,
        equations: StateEquations,
        reference_nonzeros: int | None = None,
        structure: Structure = "layered",
        omega: Tensor | None = None,
    ) -> "ImplicitModel":
        """Make the model of state equations.

        Args:
            equations: The layers, with the weights that the model is to have; they are copied.
            reference_nonzeros: N0, by default that of the equations.
            structure: `triangular` or `layered`; equations with feedback are `full`.
            omega: ω (n,) of the ball that A was solved under; `full` only.

        Returns:
            The model. NaN or infinity in a weight is an `InputError`.
        """
        model = cls.__new__(cls)
        model._take(equations, reference_nonzeros or equations.nonzeros, structure, omega)
        return model

    def _take(
        self,
        equations: StateEquations,
        reference_nonzeros: int,
        structure: Structure,
        omega: Tensor | None,
    ) -> None:
        nn.Module.__init__(self)
        _require_structure(structure)
        structure = "full" if equations.feedback else structure
        if structure == "full" and not equations.feedback:
            raise InputError(
                "structure 'full': no equation reads its own state; accepted are triangular and "
                "layered"
            )
        self.n, self.p, self.q = equations.n, equations.p, equations.q
        if omega is not None:
            omega = omega.detach().cpu().double()
            _require("omega", omega, (self.n,), torch.float64)
            if structure != "full" or not (omega > 0).all():
                raise InputError("omega: accepted are n positive numbers, for structure 'full'")
        dtype = equations.like.dtype
        learned: dict[int, nn.Parameter] = {}
        biases: list[nn.Parameter] = []
        # Adding 0.0 copies, and turns the −0.0 that masked weights are full of into 0.0.
        for e in equations.layers:
            for term in e.terms:
                _require(f"the weight of {e.name}", term.weight, tuple(term.weight.shape), dtype)
                learned.setdefault(id(term.weight), nn.Parameter(term.weight.detach() + 0.0))
            if e.bias is not None:
                # a mask, which no one solves for, may be −∞
                bias = e.bias if e.terms else e.bias.masked_fill(e.bias.isinf(), 0.0)
                _require(f"the bias of {e.name}", bias, tuple(bias.shape), dtype)
                channel = e.channel_bias if e.terms else None
                biases.append(nn.Parameter((e.bias if channel is None else channel).detach() + 0.0))
        self.learned = nn.ParameterList(learned.values())
        self.biases = nn.ParameterList(biases)
        places = {key: index for index, key in enumerate(learned)}
        self._places = [[places[id(t.weight)] for t in e.terms] for e in equations.layers]
        self.blocks, self.structure = equations.blocks, structure
        self.input_shape, self.reference_nonzeros = equations.input_shape, reference_nonzeros
        # ω keeps float64 whatever dtype the model is cast to, so it is not a buffer.
        self.omega = omega
        self._bind(equations)

    def _bind(self, equations: StateEquations) -> None:
        weights = [[self.learned[place] for place in places] for places in self._places]
        biases = iter(self.biases)
        moved = [None if e.bias is None else next(biases) for e in equations.layers]
        self._bound = with_weights(equations, weights, moved)
        self._parts = [*self.learned, *self.biases]

    @property
    def equations(self) -> StateEquations:
        """The network's equations, with the parameters that this model has now in them."""
        now = [*self.learned, *self.biases]
        # `functional_call` and `load_state_dict(assign=True)` put other tensors in their places
        if any(one is not other for one, other in zip(now, self._parts, strict=True)):
            self._bind(self._bound)
        return self._bound

    @property
    def A(self) -> BlockOperator:
        """States to states; `to_dense()` writes it out, differentiable in the weights."""
        return BlockOperator(self.equations, "A")

    @property
    def B(self) -> BlockOperator:
        """Inputs to states."""
        return BlockOperator(self.equations, "B")

    @property
    def C(self) -> BlockOperator:
        """States to outputs."""
        return BlockOperator(self.equations, "C")

    @property
    def D(self) -> BlockOperator:
        """Inputs to outputs."""
        return BlockOperator(self.equations, "D")

    @property
    def b(self) -> Tensor | None:
        """Constants of the states, (n,) if φ is elementwise; None if no equation has any."""
        return constants(self.equations)[0]

    @property
    def d(self) -> Tensor | None:
        """Constants of the outputs (q,); None if no equation has any."""
        return constants(self.equations)[1]

    @property
    def weights(self) -> Tensor | None:
        """Former name of `omega`."""
        return self.omega

    def _apply(self, fn: Any, recurse: bool = True) -> "ImplicitModel":
        nn.Module._apply(self, fn, recurse)
        with torch.no_grad():
            self._bind(self._bound.changed(fn))
        return self

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Predict, or raise `NotConvergedError` if any sample has no equilibrium.

        Args:
            *inputs: Inputs (m, …) as the network takes them; moved to the device of the weights,
                and to their dtype if they are floating-point numbers.
            **named: Those that it takes by name.

        Returns:
            What the network returns: (m, q), or a tensor of another shape, a tuple of some, or a
            table by name; differentiable in the inputs and in the weights.
        """
        interface, y = self.equations.interface, self.outputs(self.packed(*inputs, **named))
        return y if interface is None else interface.returned(y)

    def packed(self, *inputs: Any, **named: Any) -> Inputs:
        """Write inputs as u.

        Args:
            *inputs: Inputs as the network takes them.
            **named: Those that it takes by name.

        Returns:
            (m, p), in the dtype and on the device of the weights.
        """
        if self.equations.interface is None and list(named) == ["u"]:
            inputs, named = (named["u"],), {}
        return packed(self.equations.inputs, inputs, named, self.equations.like)

    def outputs(self, u: Inputs) -> Outputs:
        """Predict what stands before the activations that outputs end in, e.g. logits.

        Args:
            u: Inputs (m, p), see `packed`.

        Returns:
            y (m, q), all outputs one after another.
        """
        equations = self.equations
        if equations.feedback:
            found = self._settled(u)
            found.require_converged()
            return equations.output.preactivation([found.states, u])
        y = predict(equations, u)
        if not (finite := y.isfinite().all(1)).all():
            self._settled(u[~finite]).require_converged()
        return y

    def equilibrium(
        self,
        u: Any,
        *,
        method: Literal["exact", "anderson", "picard"] | None = None,
        tol: float | None = None,
        max_steps: int = MAX_STEPS,
        history: bool = False,
    ) -> Equilibrium:
        """Solve for the states and report on every sample instead of raising.

        Args:
            u: Inputs (m, …), a table of them by name or a tuple if the network takes several; moved
                to the dtype and device of the weights.
            method: `exact` (default unless `full`), `anderson` (default for `full`) or `picard`;
                the last two write A out, and are for matrices and elementwise activations.
            tol: Largest accepted residual of an iteration; 5e-6 in float32, 1e-10 in float64.
            max_steps: Largest number of evaluations of φ(Ax + Bu + b).
            history: Whether an iteration records the residual of every step.

        Returns:
            States, residual, steps and status per sample.

        Raises:
            InputError: On a method the structure does not have.
        """  # noqa: DOC502
        flat = self.packed(*u) if isinstance(u, tuple) else self.packed(u)
        return self._settled(flat, method, tol, max_steps, history)

    def _settled(
        self,
        u: Inputs,
        method: Literal["exact", "anderson", "picard"] | None = None,
        tol: float | None = None,
        max_steps: int = MAX_STEPS,
        history: bool = False,
    ) -> Equilibrium:
        full = self.equations.feedback
        method = method or ("anderson" if full else "exact")
        accepted = ("anderson", "picard") if full else ("exact", "anderson", "picard")
        accepted = ("exact",) if self.equations.structured else accepted
        if method not in accepted:
            raise InputError(
                f"method {method!r}: accepted for structure {self.structure!r} are "
                + ", ".join(accepted)
            )
        if method == "exact":
            return exact(self.equations, u)
        return iterated(
            self.equations,
            u,
            method=method,
            tol=tol,
            max_steps=max_steps,
            history=history,
        )

    @property
    def nonzeros(self) -> int:
        """Non-zero weights; shared weights count once, biases not at all."""
        return nonzeros(self.equations)

    @property
    def parameters_count(self) -> int:
        """Stored weights, zeros included, of the terms that the layers have."""
        return sum(weight.numel() for weight in self.learned)

    @property
    def sparsity(self) -> float:
        """1 − nonzeros / N0; negative if the model has more weights than the explicit net."""
        return 1.0 - self.nonzeros / self.reference_nonzeros

    @property
    def certificate(self) -> Certificate:
        """Well-posedness of the current weights, computed anew in float64 at every access."""
        return certificate_of(self.equations, self.omega)

    def cast(self, dtype: torch.dtype) -> "ImplicitModel":
        """Copy the model to another dtype without loosening its certificate.

        `.float()` rounds to nearest and may raise ‖A‖∞,ω of a `full` model above κ; here its A is
        rounded toward zero. Of a nilpotent A no bound is given away.

        Args:
            dtype: `torch.float32` or `torch.float64`.

        Returns:
            A new model.
        """
        equations = self.equations
        fed_back = {
            id(term.weight)
            for k, e in enumerate(equations.hidden)
            for term in e.terms
            if term.source >= k
        }

        def cast(tensor: Tensor) -> Tensor:
            if id(tensor) in fed_back:
                return round_toward_zero(tensor.detach(), dtype)
            return tensor.detach().to(dtype) if tensor.is_floating_point() else tensor

        return ImplicitModel.from_equations(
            equations.changed(cast), self.reference_nonzeros, self.structure, self.omega
        )

    def to_explicit(self) -> nn.Module:
        """Write a triangular or layered model as plain torch modules, see `as_modules`.

        Returns:
            A module with the same outputs that does not need simplicit.

        Raises:
            InputError: For a `full` model, which has no finite number of layers.
        """
        if self.equations.feedback:
            raise InputError(
                "to_explicit: a full A feeds states back, so no finite stack of layers computes "
                "the equilibrium; accepted are structure 'triangular' and 'layered'"
            )
        return as_modules(self.equations)

    def load_into(self, net: nn.Module) -> None:
        """Write the model's weights into the network it came from, or a copy of it.

        Batch norm is taken out of the weights again, and biases go into its shift or the layer's
        own.

        Args:
            net: The trained network, with its running statistics; changed in place, and left as
                it was if something does not fit.

        Raises:
            InputError: If the model has connections that the network has not, or something does
                not fit.
        """  # noqa: DOC502
        load_into(self.equations, net)

    def save(self, directory: str | Path) -> None:
        """Write `model.safetensors` and `model.json`, which `load` reads.

        A model already there is replaced only once everything is on disk. A full disk or a folder
        that cannot be written is an `InputError`, and nothing is left behind.

        Args:
            directory: Where to; made if it does not exist.
        """
        header, numbers = equations_json.write(self.equations)
        blocks = [{"name": b.name, "size": b.size, "phi": b.phi.name} for b in self.blocks]
        if self.omega is not None:
            numbers["omega"] = self.omega
        about = {
            "format": "simplicit",
            "version": 3,
            "structure": self.structure,
            "input_shape": list(self.input_shape),
            "reference_nonzeros": self.reference_nonzeros,
            "blocks": blocks,
        }
        write(Path(directory), about | header, numbers)

    def to_onnx(
        self, path: str | Path, *, tol: float | None = None, max_steps: int = MAX_STEPS
    ) -> None:
        """Write the model as an ONNX file, for any number of samples; needs the extra `onnx`.

        A `full` model is a Loop that stops each sample as `equilibrium(method="picard")` does. It
        returns NaN for a sample that has no equilibrium. The file is kept only if ONNX Runtime,
        where it is installed, returns what the model returns.

        Args:
            path: The file; its folder is made if need be. A file that is there is replaced.
            tol: Largest accepted residual of a `full` model, see `equilibrium`.
            max_steps: Largest number of evaluations of φ(Ax + Bu + b) of a `full` model.

        Raises:
            InputError: If the extra is missing, an operation has no ONNX form, the outputs differ
                by more than 1e-5 of their size, or the file cannot be written.
        """  # noqa: DOC502
        from simplicit.model.export.onnx_file import write_onnx

        write_onnx(self.equations, Path(path), tol=tol, max_steps=max_steps)

    def save_pretrained(
        self, folder: str | Path, figures: Mapping[str, float | str] | None = None
    ) -> None:
        """Write the model with a card, in a folder as Hugging Face keeps them.

        Args:
            folder: Where to; made if it does not exist.
            figures: What was measured, for the card, e.g. `{"accuracy": 0.954}`.

        Raises:
            InputError: If something cannot be written; then nothing is left behind.
        """  # noqa: DOC502
        from simplicit.model.export.pretrained import save_pretrained

        save_pretrained(self, Path(folder), figures)

    @staticmethod
    def from_pretrained(name: str | Path, revision: str | None = None) -> "ImplicitModel":
        """Read a model that `save_pretrained` or `save` wrote.

        Args:
            name: A folder, or an id `owner/name` of the Hugging Face hub where there is no such
                folder; the latter needs `huggingface_hub`.
            revision: Branch, tag or commit of the hub.

        Returns:
            The model, on the CPU, every bit of every weight the same.

        Raises:
            InputError: If there is none, a file is damaged, or the hub's library is missing.
        """  # noqa: DOC502
        from simplicit.model.export.pretrained import from_pretrained

        return from_pretrained(name, revision)

    def extra_repr(self) -> str:
        """Describe the model in `print`.

        Returns:
            Structure, sizes and sparsity.
        """
        sizes = f"p={self.p}, n={self.n}, q={self.q}"
        return f"{self.structure}, {sizes}, nonzeros={self.nonzeros}, sparsity={self.sparsity:.3f}"


def _require_structure(structure: str) -> None:
    if structure not in STRUCTURES:
        raise InputError(f"structure {structure!r}: accepted are {', '.join(STRUCTURES)}")


def _require(name: str, value: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if tuple(value.shape) != shape:
        raise InputError(f"{name} of shape {tuple(value.shape)}: accepted is {shape}")
    if value.dtype != dtype or dtype not in TOLERANCE:
        raise InputError(f"{name} of {value.dtype}: accepted is float32 or float64, the same as A")
    if not value.isfinite().all():
        bad = int((~value.isfinite()).sum())
        raise InputError(f"{name} holds {bad} values that are NaN or infinite: solve again")
