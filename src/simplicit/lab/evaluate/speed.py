"""Time a sample: the network and the model that was made of it, every way they can be run.

All ways of one measurement take turns in one process, warm: what else the machine does meets each
of them. A figure is the median of the rounds, its spread the quartiles.
"""

import copy
import shutil
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from simplicit.capture.read import capture
from simplicit.equations.network import StateEquations
from simplicit.errors import InputError
from simplicit.model.export.onnx_file import session
from simplicit.model.export.onnx_graph import traced
from simplicit.model.implicit import ImplicitModel
from simplicit.runtime.compiled import compile as compiled
from simplicit.system import threads as processors
from simplicit.system.extras import installed

Row = dict[str, Any]
Way = Callable[[Tensor], Any]

BATCHES = (1, 8, 64)
"""Samples a call."""

ROUNDS = 5
"""Turns of every way; odd, so that the median is one of them."""

SECONDS = 0.01
"""Shortest time of a turn: many calls, where one is short."""

DENSE = 0.95
"""Part of the stored weights that are not zero from which on a model is dense."""

RUNTIME = "runtime"
"""Way of a compiled model."""

TRIED = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98)
"""Sparsities at which it is looked whether a compiled model pays."""


def measure(
    name: str,
    net: nn.Module,
    made: nn.Module | None,
    inputs: Tensor,
    *,
    batches: Sequence[int] = BATCHES,
    threads: Sequence[int] | None = None,
    compiler: bool = False,
    rounds: int = ROUNDS,
) -> list[Row]:
    """Time a network and a model that was made of it.

    Args:
        name: What the model is called.
        net: The network it was made of.
        made: The model: an implicit one, or a network that was pruned; None for the network alone.
        inputs: Samples.
        batches: Samples a call; more than there are repeat them.
        threads: Threads; by default one, and all processors.
        compiler: Whether `torch.compile` is a way, too, where there is a compiler: it takes tens of
            seconds.
        rounds: Turns of each way.

    Returns:
        The rows of `speed.csv`: model; way; whether it is one of the dense network, beside which
        the model was measured; threads; batch; and milliseconds a sample, the median, with the
        quartiles as `low` and `high`.
    """
    every = sorted({1, processors.available()}) if threads is None else list(threads)
    network = copy.deepcopy(net).cpu().eval()
    written = _onnx(network, inputs[:2].cpu().float())
    u, rows, before = inputs.cpu().float(), [], torch.get_num_threads()
    try:
        with torch.no_grad():
            for count in every:
                torch.set_num_threads(count)
                for batch in batches:
                    x = _repeated(u, batch)
                    ways = {
                        (way, True): f for way, f in dense(network, x, written, compiler).items()
                    }
                    if made is not None:
                        ways |= {(way, False): f for way, f in sparse(made, x).items()}
                    rows += [
                        {"model": name, "way": way, "dense": whether, "threads": count,
                         "batch": batch, **found}
                        for (way, whether), found in _timed(ways, x, rounds).items()
                    ]  # fmt: skip
    finally:
        torch.set_num_threads(before)
    return rows


def dense(
    net: nn.Module, x: Tensor, written: bytes | None = None, compiler: bool = False
) -> dict[str, Way]:
    """List the ways to run a network.

    Args:
        net: The network.
        x: Inputs of the batch size in question.
        written: The network as an ONNX file, if it could be written.
        compiler: Whether `torch.compile` is one of them.

    Returns:
        Functions of the inputs, by name.
    """
    ways: dict[str, Way] = {"torch": net}
    if x.ndim == 4 and any(isinstance(module, nn.Conv2d) for module in net.modules()):
        last = copy.deepcopy(net).to(memory_format=torch.channels_last)  # pyright: ignore
        ways["torch, channels last"] = lambda u: last(u.to(memory_format=torch.channels_last))
    if written is not None:
        ways["ONNX Runtime"] = _session(written)
    if compiler and (shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")):
        ways["torch.compile"] = torch.compile(net)
    return ways


def sparse(made: nn.Module, x: Tensor) -> dict[str, Way]:
    """List the ways to run a model: with zeros, or a smaller one without.

    Args:
        made: The model: an implicit one, or a network that was pruned.
        x: Inputs of the batch size in question.

    Returns:
        Functions of the inputs, by name.
    """
    model = as_model(made, x)
    ways: dict[str, Way] = {}
    if not model.equations.feedback:
        explicit = model.to_explicit()
        ways["torch modules"] = explicit
        if is_dense(model):
            others = dense(explicit, x, _written(model.equations, x[:2]))
            ways |= {way: run for way, run in others.items() if run is not explicit}
        elif not model.equations.structured:
            ways["SciPy CSR"] = _products(model.equations, _scipy)
            ways["torch CSR"] = _products(model.equations, _torch)
    ways[RUNTIME] = compiled(model, batch=len(x), threads=torch.get_num_threads())
    return ways


def is_dense(model: ImplicitModel) -> bool:
    """Say whether a model has next to no zeros, as one without some units or of low rank.

    Args:
        model: The model.

    Returns:
        Whether products of dense matrices are its way.
    """
    return model.nonzeros > DENSE * model.parameters_count


def as_model(made: nn.Module, x: Tensor) -> ImplicitModel:
    """Take a model as one of float32 on the processor.

    Args:
        made: An implicit model, or a network.
        x: Inputs.

    Returns:
        The model.
    """
    if isinstance(made, ImplicitModel):
        return made.cast(torch.float32).cpu()
    return ImplicitModel.from_equations(capture(copy.deepcopy(made).cpu().eval(), x[:2]))


def best(rows: Sequence[Row], dense: bool, threads: int, batch: int) -> Row | None:
    """Find the fastest way of a network, or of the model that was measured beside it.

    Args:
        rows: Of `measure`.
        dense: Which of the two.
        threads: Threads.
        batch: Samples a call.

    Returns:
        Its row; None if there is none.
    """
    wanted = (dense, threads, batch)
    own = [row for row in rows if (row["dense"], row["threads"], row["batch"]) == wanted]
    return min(own, key=lambda row: row["milliseconds"], default=None)


def summed_up(rows: Sequence[Row], net: nn.Module, made: nn.Module | None, inputs: Tensor) -> Row:
    """Sum a measurement up: in batches of 64, on one thread.

    Args:
        rows: Of `measure`, of the same networks and inputs.
        net: The network.
        made: The model, or None.
        inputs: Samples.

    Returns:
        Columns of `metrics.json`: `milliseconds` a sample of the fastest way, this `way`, and, of a
        model, how many `times_faster` it is than the fastest way of the network. Where it is
        slower, also the sparsity that it `pays_from`. Nothing, if that batch was not measured on
        one thread.
    """
    batch = max(BATCHES)
    network, model = best(rows, True, 1, batch), best(rows, False, 1, batch)
    own = model or network
    if own is None or network is None:
        return {}
    found: Row = {"milliseconds": own["milliseconds"], "way": own["way"]}
    if model is not None and made is not None:
        found["times_faster"] = network["milliseconds"] / model["milliseconds"]
        thinned = found["times_faster"] < 1 and not is_dense(as_model(made, inputs))
        if thinned:
            found["pays_from"] = pays_from(net, made, inputs, batch)
    return found


def pays_from(net: nn.Module, made: nn.Module, inputs: Tensor, batch: int) -> float | None:
    """Find the sparsity from which a compiled model is faster than the network, on one thread.

    The time depends on where the zeros are and not on the weights: the model is thinned at random.

    Args:
        net: The network.
        made: The model.
        inputs: Samples.
        batch: Samples a call.

    Returns:
        The least sparsity of `TRIED` at which it is; None if it is at none.
    """
    before, x = torch.get_num_threads(), _repeated(inputs.cpu().float(), batch)
    model = as_model(made, x)
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            network = copy.deepcopy(net).cpu().eval()
            ways: dict[Any, Way] = dict(dense(network, x, _onnx(network, x[:2])))
            for sparsity in TRIED:
                ways[sparsity] = compiled(_thinned(model, sparsity), batch=batch, threads=1)
            found = {key: row["milliseconds"] for key, row in _timed(ways, x, 3).items()}
    finally:
        torch.set_num_threads(before)
    limit = min(value for key, value in found.items() if isinstance(key, str))
    return next((sparsity for sparsity in TRIED if found[sparsity] < limit), None)


def _thinned(model: ImplicitModel, sparsity: float) -> ImplicitModel:
    generator = torch.Generator().manual_seed(0)
    weights = {id(term.weight) for e in model.equations.layers for term in e.terms}

    def thin(tensor: Tensor) -> Tensor:
        if id(tensor) not in weights:
            return tensor
        return torch.where(torch.rand(tensor.shape, generator=generator) < sparsity, 0.0, 1e-3)

    changed = model.equations.changed(thin)
    return ImplicitModel.from_equations(changed, model.reference_nonzeros, model.structure)


def _repeated(u: Tensor, batch: int) -> Tensor:
    if not len(u):
        raise InputError("no samples to time: at least one is needed")
    return torch.cat([u] * -(-batch // len(u)))[:batch].contiguous()


def _timed(ways: dict[Any, Way], x: Tensor, rounds: int) -> dict[Any, Row]:
    calls, seconds = {}, {key: [] for key in ways}
    for key, way in ways.items():
        for _ in range(2):  # warm
            way(x)
        begin = time.perf_counter()
        way(x)
        calls[key] = max(1, round(SECONDS / max(time.perf_counter() - begin, 1e-7)))
    for _ in range(rounds):
        for key, way in ways.items():
            way(x)  # what the way before left in the caches is gone
            begin = time.perf_counter()
            for _ in range(calls[key]):
                way(x)
            seconds[key].append((time.perf_counter() - begin) / calls[key])
    found = {}
    for key, some in seconds.items():
        milliseconds = [1e3 * one / len(x) for one in some]
        low, middle, high = statistics.quantiles(milliseconds, n=4, method="inclusive")
        found[key] = {"milliseconds": middle, "low": low, "high": high}
    return found


# the network for any batch, as the exporter of models writes it, where it can
def _onnx(net: nn.Module, x: Tensor) -> bytes | None:
    if not installed("onnx"):
        return None
    try:
        return _written(capture(net, x), x)
    except Exception:  # of reading it
        return None


def _written(equations: StateEquations, x: Tensor) -> bytes | None:
    if not installed("onnx"):
        return None
    try:
        written = traced(equations).SerializeToString()
        _session(written)(x)
    except Exception:  # of the exporter and of the runtime, whatever they raise: no such way
        return None
    return written


def _session(written: bytes) -> Way:
    running = session(written)
    (given,) = running.get_inputs()
    return lambda u: running.run(None, {given.name: u.numpy()})


# a network of matrices by products with sparse ones, features first
def _products(equations: StateEquations, kind: Callable[[Tensor], Any]) -> Way:
    layers = [
        (
            [(term.source, kind(term.map.to_dense().detach()), term.fixed) for term in e.terms],
            e.fixed,
            None if e.full_bias is None else e.full_bias.detach()[:, None],
            e.phi,
        )
        for e in equations.layers
    ]

    def run(u: Tensor) -> Tensor:
        states = [u.flatten(1).T.contiguous()]
        for terms, fixed, bias, phi in layers:
            z: Any = 0 if bias is None else bias
            for source, product, before in terms:
                x = states[source + 1]
                z = z + product(x if before is None else before(x.T).T.contiguous())
            for summand in fixed:
                z = z + summand.map(states[summand.source + 1].T).T
            states.append(phi(z))
        return states[-1].T

    return run


def _scipy(weight: Tensor) -> Callable[[Tensor], Tensor]:
    from scipy.sparse import csr_matrix

    matrix = csr_matrix(weight.numpy())
    return lambda x: torch.from_numpy(matrix @ x.numpy())


def _torch(weight: Tensor) -> Callable[[Tensor], Tensor]:
    with warnings.catch_warnings():  # sparse CSR is in beta, it says
        warnings.simplefilter("ignore")
        matrix = weight.to_sparse_csr()
    return lambda x: matrix @ x
