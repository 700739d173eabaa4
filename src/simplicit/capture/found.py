"""The equations found so far while a network is read, and the weights they are made of."""

from dataclasses import replace
from typing import Any, NoReturn

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from simplicit.capture.affine import Affine
from simplicit.equations.layer_phi import Kept, StatePhi
from simplicit.equations.maps.matrix import swapped
from simplicit.equations.network import BiasParameter, Equation
from simplicit.equations.phi import Phi
from simplicit.equations.weighted_maps import Gather
from simplicit.errors import InputError

IDENTITY = Phi("identity")

IGNORED = ("device", "layout", "pin_memory", "memory_format")
"""Options of operations that say where and how a result is stored."""

LOOKED_UP = (torch.ops.aten.embedding.default, torch.ops.aten._embedding_bag_forward_only.default)
"""Operations that read places of a table."""

Shape = tuple[int, ...]


class Layers:
    """The hidden equations found so far, in forward order, and the network's parameters.

    Args:
        parameters: The network's parameters by name.
    """

    def __init__(self, parameters: dict[str, Tensor]) -> None:
        self.hidden: list[Equation] = []
        self._names = {p.data_ptr(): name for name, p in parameters.items() if p.numel()}
        self._parameters = parameters
        self._uses: dict[str, int] = {}
        self._swapped: dict[tuple[int, Shape, int], Tensor] = {}
        self._counts: dict[tuple[int, int], int] = {}
        self._pinned: set[str] = set()

    @property
    def nonzeros(self) -> int:
        """Non-zero weights; a weight used several times, transposed or not, counts once."""
        return sum(self._counts.values())

    def count(self, weight: Tensor) -> None:
        """Count a weight's non-zeros, unless it was counted before.

        Args:
            weight: The weight of a linear map, as the network stores it.
        """
        self._counts[weight.data_ptr(), weight.numel()] = int(weight.count_nonzero())

    def parameter(self, tensor: Tensor | None) -> tuple[str, bool]:
        """Find what a tensor is called in the network's state dict.

        Args:
            tensor: A tensor that the network uses.

        Returns:
            Its name, empty if it is no parameter but made of some, and whether it is transposed.
        """
        name = "" if tensor is None else self._names.get(tensor.data_ptr(), "")
        if tensor is None or not name:
            return "", False
        stored = self._parameters[name]
        if tensor.shape == stored.shape and tensor.stride() == stored.stride():
            return name, False
        # all of its entries in their order, in fewer axes or with rows and columns exchanged
        if tensor.numel() != stored.numel() or not stored.is_contiguous():
            return "", False
        if tensor.is_contiguous():
            return name, False
        transposed = tensor.ndim == 2 and tensor.T.is_contiguous()
        return (name, True) if transposed else ("", False)

    def pin(self, operands: list[Any], result: Any) -> None:
        """Note the parameters that constants are made of: moving them would move those, too.

        Args:
            operands: What a constant is computed from.
            result: The constant; a view of a parameter is still that parameter.
        """
        results = [
            r.untyped_storage().data_ptr()
            for r in pytree.tree_leaves(result)
            if isinstance(r, Tensor)
        ]
        for operand in operands:
            if isinstance(operand, Tensor) and operand.untyped_storage().data_ptr() not in results:
                self._pinned |= {self.parameter(operand)[0]} - {""}

    def released(self, equation: Equation) -> Equation:
        """Leave a bias alone whose parameter something else is made of, see `pin`.

        Args:
            equation: An equation.

        Returns:
            The equation, with a bias that is adjusted by no parameter if need be.
        """
        adjust = equation.adjust
        if adjust is None or adjust.name not in self._pinned:
            return equation
        bias = equation.channel_bias if equation.channel_bias is not None else equation.full_bias
        assert bias is not None
        return replace(equation, adjust=BiasParameter("", torch.zeros_like(adjust.factor), bias))

    def swapped(self, weight: Tensor, groups: int) -> Tensor:
        """Exchange a weight's rows and columns, once: uses of one weight share the result.

        Args:
            weight: The weight, as the network stores it.
            groups: Groups of channels.

        Returns:
            The weight, see `matrix.swapped`.
        """
        key = (weight.data_ptr(), weight.shape, groups)
        if key not in self._swapped:
            self._swapped[key] = swapped(weight, groups)
        return self._swapped[key]

    def equation(self, node: fx.Node, value: Affine, phi: StatePhi, name: str = "") -> Equation:
        """Write a value down as an equation.

        Args:
            node: The operation it ends with; names the equation if no linear map does.
            value: The pre-activation.
            phi: φ.
            name: Its name, if not that of the value's linear map.

        Returns:
            The equation.
        """
        path = module_path(node)
        if path and not value.terms and phi is IDENTITY:
            path = f"{path}.reads"  # what the module's own layer reads
        name = name or value.name or path or node.name
        uses = self._uses[name] = self._uses.get(name, 0) + 1
        unique = name if uses == 1 else f"{name}@{uses - 1}"  # as torch.export writes reuse
        equation = Equation(unique, value.terms, value.bias, phi, value.summands)
        if not value.terms:
            return equation
        first, bias = value.terms[0].map, equation.channel_bias
        none = first.weight.new_zeros(len(first.weight))
        parameter, factor = value.adjust or ("", none)
        moved = factor * self._parameters[parameter] if parameter else none
        if bias is None:  # position embeddings are added
            assert value.bias is not None
            rest = value.bias - first.spread(moved)
        else:
            rest = bias - moved
        return replace(equation, adjust=BiasParameter(parameter, factor, rest))

    def state(
        self,
        node: fx.Node,
        value: Affine,
        phi: StatePhi,
        shape: Shape | None = None,
        name: str = "",
    ) -> Affine:
        """Make φ(value) the next hidden layer.

        Args:
            node: The operation it ends with.
            value: The pre-activation.
            phi: φ.
            shape: Of φ(value), in a batch of one sample; that of the value by default.
            name: Name of the equation, if not that of the value's linear map.

        Returns:
            The layer's state, as a value.
        """
        self.hidden.append(self.equation(node, value, phi, name))
        return Affine.of_source(len(self.hidden) - 1, shape or value.shape, value.like)

    def settled(self, node: fx.Node, value: Affine, single: bool = False) -> Affine:
        """Make a value that has terms a layer whose φ is the identity.

        Args:
            node: The operation that needs it.
            value: The value.
            single: Whether one that is a sum of several sources becomes a layer, too.

        Returns:
            A value without terms.
        """
        if value.terms or (single and len(value.fixed) > 1):
            return self.state(node, value, IDENTITY)
        return value

    def keep(
        self, node: fx.Node, args: tuple[Any, ...], options: dict[str, Any], op: str = ""
    ) -> Any:
        """Make an operation the φ of a layer whose z are its operands, one after another.

        Args:
            node: The operation.
            args: Its positional arguments.
            options: Its keyword arguments.
            op: What to keep, if it is not the operation itself.

        Returns:
            The layer's state, as a value; a sequence of such if there are several results.
        """
        operands: list[Affine] = []
        constants: list[Tensor] = []
        options = {key: option for key, option in options.items() if key not in IGNORED}

        def place(leaf: Any) -> Any:
            if isinstance(leaf, Affine):
                if not any(leaf is operand for operand in operands):
                    operands.append(leaf)
                return {"operand": next(k for k, o in enumerate(operands) if o is leaf)}
            if isinstance(leaf, Tensor):
                constants.append(leaf)
                return {"constant": len(constants) - 1}
            if isinstance(leaf, torch.dtype):
                return {"dtype": str(leaf).removeprefix("torch.")}
            if leaf is not None and not isinstance(leaf, (bool, int, float, str)):
                refuse(node, f"has an argument of type {type(leaf).__name__}; accepted: numbers")
            return leaf

        placed = pytree.tree_map(place, (list(args), options))
        whole = self.joined(node, operands)
        batched = "dot_product" in str(node.target) and all(o.shape[0] == 1 for o in operands)
        names = tuple(self.parameter(constant)[0] for constant in constants)
        # a table that is looked up has no weights to spend
        looked_up = node.target in LOOKED_UP
        matrices = [k for k, t in enumerate(constants) if t.ndim > 1 and names[k]]
        weights = [] if looked_up else matrices
        for k in weights:
            self.count(constants[k])

        def result(output: int | None) -> Affine:
            shape = shape_of_one(node, output)
            phi = Kept(
                op=op or operation_of(node),
                arguments=placed[0],
                options=placed[1],
                operands=tuple(operand.shape for operand in operands),
                dtypes=tuple(o.dtype and str(o.dtype).removeprefix("torch.") for o in operands),
                constants=tuple(constants),
                names=names,
                weights=tuple(weights),
                batched=batched,
                output=output,
                output_shape=shape,
            )
            state = self.state(node, whole, phi, shape, module_path(node) or node.name)
            dtype = _results(node)[output or 0].dtype
            return state if dtype == whole.like.dtype else replace(state, dtype=dtype)

        return result(None) if isinstance(node.meta["val"], Tensor) else _Results(result)

    def joined(self, node: fx.Node, operands: list[Affine]) -> Affine:
        """Put values one after another.

        Args:
            node: The operation that needs it.
            operands: The values.

        Returns:
            All of them, without terms.
        """
        operands = [self.settled(node, operand) for operand in operands]
        if len(operands) == 1:
            return operands[0]
        total, start = sum(operand.size for operand in operands), 0
        parts = []
        for operand in operands:
            index = torch.full((total,), -1, device=operand.like.device)
            index[start : start + operand.size] = torch.arange(operand.size).to(index)
            parts.append(operand.mapped(Gather(index, operand.size), (total,)))
            start += operand.size
        whole = parts[0]
        for part in parts[1:]:
            whole = whole.plus(part)
        return whole


class _Results:
    """Results of an operation that has several: each becomes a layer when it is used."""

    def __init__(self, make: Any) -> None:
        self._make = make

    def __getitem__(self, index: int) -> Affine:
        return self._make(index)


def operation_of(node: fx.Node) -> str:
    """Name an operation.

    Args:
        node: The operation.

    Returns:
        Its name in ATen, with its overload.
    """
    return str(node.target).removeprefix("aten.")


def module_path(node: fx.Node) -> str:
    """Find the module an operation belongs to.

    Args:
        node: The operation.

    Returns:
        The module's path, empty for the network itself.
    """
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return stack[-1][0] if stack else ""


def refuse(node: fx.Node, reason: str) -> NoReturn:
    """Say which operation of which module cannot be captured.

    Args:
        node: The operation.
        reason: Why, and what is accepted.

    Raises:
        InputError: Always.
    """
    operation = getattr(node.target, "__name__", str(node.target)).split(".")[0].strip("_")
    where = f"module {module_path(node)!r}" if module_path(node) else "the network's forward"
    raise InputError(f"{where}: {operation} {reason}")


def of_one(size: Any) -> int:
    """Evaluate a size in a batch of one sample.

    Args:
        size: A number, or an expression in the batch's size.

    Returns:
        The number.
    """
    if not isinstance(size, torch.SymInt):
        return int(size)
    expression = size.node.expr
    return int(expression.subs(dict.fromkeys(expression.free_symbols, 1)))


def shape_of_one(node: fx.Node, output: int | None = None) -> Shape:
    """Look up the shape of an operation's result in a batch of one sample.

    Args:
        node: The operation.
        output: Which result, if there are several.

    Returns:
        The shape, the batch's dimension included.
    """
    return tuple(of_one(size) for size in _results(node)[output or 0].shape)


def _results(node: fx.Node) -> list[Tensor]:
    value = node.meta["val"]
    return [value] if isinstance(value, Tensor) else list(value)
