"""The explicit network: make it (`networks`), try it on the data, train it, measure it."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.optim.lr_scheduler import LinearLR

from simplicit.data.datasets import Dataset
from simplicit.errors import InputError, did_you_mean
from simplicit.explicit.by_name import build, first_line, load_weights
from simplicit.explicit.kept import State, Trainings
from simplicit.system import progress

__all__ = [
    "OPTIMIZERS",
    "accuracy",
    "build",
    "check",
    "evaluating",
    "load_weights",
    "suited",
    "train",
]

# those that need a closure, sparse gradients or matrices only are of no use here
_SPECIAL = {"Optimizer", "LBFGS", "SparseAdam", "Muon"}
OPTIMIZERS = tuple(
    sorted(
        name
        for name, value in vars(torch.optim).items()
        if isinstance(value, type)
        and issubclass(value, torch.optim.Optimizer)
        and name not in _SPECIAL
    )
)
"""Names of the optimisers of `torch.optim` that `train` accepts."""

SMALL = 1_000_000
"""Parameters below which a network trains on one thread."""


def check(net: nn.Module, inputs: Float[Tensor, "m *shape"], classes: int) -> None:
    """Try the network on one sample, so that a misfit is told before any work is done.

    Args:
        net: Any network that returns logits.
        inputs: Images of the dataset.
        classes: Number of classes of the dataset.

    Raises:
        InputError: If the network does not take such a sample or return one logit a class.
    """
    shape = " x ".join(str(size) for size in inputs.shape[1:])
    with evaluating(net), torch.no_grad():
        try:
            sample = inputs[:1].to(_device(net))
            outputs = net(sample)
            # a convolution takes one grey image without channel for a channel without batch
            net(torch.cat([sample, sample]))
        except Exception as error:
            raise InputError(
                f"the explicit network does not take samples of {shape} "
                f"({inputs[0].numel()} values): {first_line(error)}"
            ) from error
    found = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
    if found != (1, classes):
        raise InputError(
            f"the explicit network returns {found} for one sample; expected are logits of "
            f"shape (1, {classes}), one a class"
        )


def suited(net: nn.Module, dataset: Dataset) -> Dataset:
    """Give a network the layout of images it takes: grey ones as they are, or with one channel.

    Args:
        net: Any network that returns logits.
        dataset: The data.

    Returns:
        The same data, nothing copied.

    Raises:
        InputError: If the network takes neither, as `check`.
    """
    try:
        check(net, dataset.train_inputs, len(dataset.classes))
    except InputError as error:
        if dataset.train_inputs.ndim != 3:
            raise
        try:
            with_channel = dataset.with_channel()
            check(net, with_channel.train_inputs, len(dataset.classes))
        except InputError:
            raise error from None
        return with_channel
    return dataset


def train(
    net: nn.Module,
    inputs: Shaped[Tensor, "m *shape"],
    labels: Int[Tensor, "m"] | Float[Tensor, "m classes"],
    *,
    optimizer: str = "Adam",
    lr: float = 1e-3,
    decay: bool = False,
    epochs: int = 10,
    batch_size: int = 64,
    seed: int = 0,
    device: str | torch.device = "cpu",
    log_interval: int = 10_000,
    objective: Callable[[Tensor, Tensor], Tensor] | None = None,
    penalty: Callable[[], Tensor] | None = None,
    after_step: Callable[[], None] | None = None,
    kept: Trainings | None = None,
    also: Mapping[str, Tensor] | None = None,
) -> None:
    """Minimise the cross-entropy of the logits; the same seed gives the same bits on one CPU.

    Args:
        net: The network, trained in place and left on `device`, its modes as they were.
        inputs: Training samples.
        labels: Their classes, from 0, or a probability of each class.
        optimizer: One of `OPTIMIZERS`, with torch's defaults besides the learning rate.
        lr: Learning rate.
        decay: Whether it falls to 0, in equal steps.
        epochs: Passes over the samples, each in a new random order.
        batch_size: Samples a step.
        seed: Seed of the orders and of dropout; the global random state is left as it was.
        device: Where to train.
        log_interval: Samples between two updates of the progress shown.
        objective: Gives the loss of a batch of inputs and labels; the cross-entropy by default.
        penalty: Gives a scalar that is added to each step's loss.
        after_step: Called after each step, for instance to hold weights at zero.
        kept: Where the state is kept now and then, for a training that is stopped: the same call
            goes on from there.
        also: Tensors that `objective`, `penalty` and `after_step` change in place; they are part of
            the state.

    Raises:
        InputError: On an unknown optimiser, no samples, NaN or infinity in the inputs, a batch of
            one that batch norm cannot take, or a loss that is no longer finite.
    """
    if optimizer not in OPTIMIZERS:
        raise InputError(f"no optimizer {optimizer!r}: {did_you_mean(optimizer, OPTIMIZERS)}")
    total = len(inputs)
    if total == 0:
        raise InputError("the training set is empty: at least one sample is needed")
    if not inputs.isfinite().all():
        raise InputError("the training inputs hold NaN or infinity: every value must be finite")
    if min(total, batch_size) == 1 and any(isinstance(m, nn.BatchNorm1d) for m in net.modules()):
        raise InputError("batch norm has no variance of one sample: give batches of 2 at least")
    device = torch.device(device)
    net.to(device)
    inputs, labels = inputs.to(device), labels.to(device)
    cross_entropy = nn.CrossEntropyLoss()
    loss_of = objective or (lambda u, y: cross_entropy(net(u), y))
    step = getattr(torch.optim, optimizer)(net.parameters(), lr=lr)
    steps = max(1, epochs * math.ceil(total / batch_size))
    rate = LinearLR(step, 1.0, 0.0 if decay else 1.0, steps)

    with (
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        _modes_kept(net),
        _threads_for(net),
        progress.task("training (samples)", float(epochs * total)) as advance,
    ):

        def report(samples: int, epoch: int, loss: float) -> None:
            if not math.isfinite(loss):
                raise InputError(
                    f"training diverged in epoch {epoch}: the loss is {loss}; try a learning "
                    f"rate below {lr:g}"
                )
            advance(float(samples), info=f"epoch {epoch} of {epochs}, loss {loss:.3f}")

        torch.manual_seed(seed)
        net.train()
        problem = inputs, labels, optimizer, lr, decay, epochs, batch_size, seed
        place = None if kept is None else kept.next()
        state = State(place, net, step, rate, also or {}, device, problem)
        if done := state.restore():
            advance(float(done * total), info=f"epoch {done} of {epochs}, taken up")
        for epoch in range(done + 1, epochs + 1):
            waiting, loss = 0, inputs.new_zeros(())
            for batch in _steps(torch.randperm(total).to(device), batch_size):
                loss = loss_of(inputs[batch], labels[batch])
                if penalty is not None:
                    loss = loss + penalty()
                step.zero_grad()
                loss.backward()
                step.step()
                rate.step()
                if after_step is not None:
                    after_step()
                waiting += len(batch)
                if waiting >= log_interval:
                    report(waiting, epoch, loss.item())
                    waiting = 0
            report(waiting, epoch, loss.item())
            state.keep(epoch, last=epoch == epochs)
        if kept is not None:
            kept.earlier += state.earlier


def accuracy(
    net: nn.Module,
    inputs: Float[Tensor, "m *shape"],
    labels: Int[Tensor, "m"],
    batch_size: int = 1000,
) -> float:
    """Fraction of samples whose largest logit is that of their class.

    Args:
        net: Any network that returns logits; run in evaluation mode, its modes kept.
        inputs: Samples, at least one; moved to the network's device batch by batch.
        labels: Their classes.
        batch_size: Samples at a time.

    Returns:
        A number in [0, 1].
    """
    device = _device(net)
    correct = 0
    with evaluating(net), torch.no_grad():
        for u, label in zip(inputs.split(batch_size), labels.split(batch_size), strict=True):
            correct += int((net(u.to(device)).argmax(dim=1) == label.to(device)).sum())
    return correct / len(labels)


# batch norm has no variance of one value: a last sample alone joins the others
def _steps(order: Int[Tensor, " m"], batch_size: int) -> list[Tensor]:
    steps = list(order.split(batch_size))
    if len(steps) > 1 and len(steps[-1]) == 1 < batch_size:
        steps[-2:] = [torch.cat(steps[-2:])]
    return steps


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; every module's own mode is put back after it.

    Args:
        net: Any network.

    Yields:
        Nothing.
    """
    with _modes_kept(net):
        net.eval()
        yield


@contextmanager
def _modes_kept(net: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in net.modules()}
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def _threads_for(net: nn.Module) -> Iterator[None]:
    """One thread for a small network: its steps are too short to share.

    Measured with 784-64-32-16-10 and batches of 64 on 2 busy cores: 1.3 s an epoch with one
    thread, up to 40 s with two, which wait for each other.
    """
    threads = torch.get_num_threads()
    if sum(parameter.numel() for parameter in net.parameters()) < SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _device(net: nn.Module) -> torch.device:
    parameter = next(net.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device
