"""Two language models of characters, of the classes of Hugging Face: GPT-2's and BERT's.

The text is the descriptions of data sets that scikit-learn ships; every tenth part of it is test
text.
"""

from pathlib import Path
from typing import Any

import sklearn.datasets
import torch
import torch.nn.functional as F
from torch import Tensor, nn

LENGTH, WIDTH, MASKED = 64, 96, 0.15
STEPS = {"gpt2": 1200, "bert": 3000}
"""A minute and a half and four minutes; masked characters are learned later than the next one."""


def text() -> tuple[Tensor, Tensor, int]:
    """Read the text.

    Returns:
        Training and test text as numbers of characters, and how many characters there are; the
        last one is a mask.
    """
    folder = Path(sklearn.datasets.__file__).parent / "descr"
    whole = "\n".join(path.read_text() for path in sorted(folder.glob("*.rst")))
    letters = sorted(set(whole))
    ids = torch.tensor([letters.index(letter) for letter in whole])
    parts = ids.split(LENGTH * 8)
    train = torch.cat([part for k, part in enumerate(parts) if k % 10 != 9])
    test = torch.cat([part for k, part in enumerate(parts) if k % 10 == 9])
    return train, test, len(letters) + 1


def windows(ids: Tensor, count: int, seed: int) -> Tensor:
    """Draw windows of a text.

    Args:
        ids: The text.
        count: How many.
        seed: Of the draw.

    Returns:
        (count, length).
    """
    draw = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(ids) - LENGTH, (count, 1), generator=draw)
    return ids[starts + torch.arange(LENGTH)]


def gpt2() -> tuple[nn.Module, Any, Any]:
    """Train a GPT-2 that predicts the next character.

    Returns:
        The network, calibration inputs, and what it is worth: its loss on test text.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    train, test, letters = text()
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=letters, n_positions=LENGTH, n_embd=WIDTH, n_layer=3, n_head=4,
        bos_token_id=0, eos_token_id=0, embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0,
    )  # fmt: skip
    net = GPT2LMHeadModel(config)

    def loss(logits: Tensor, ids: Tensor) -> Tensor:
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())

    _train(net, STEPS["gpt2"], lambda step: (windows(train, 32, step),) * 2, loss)
    held = windows(test, 256, 10**6)

    @torch.no_grad()
    def worth(some: Any) -> float:
        return float(loss(some(held)["logits"], held))

    return net.eval(), windows(train, 512, 10**7), worth


def bert() -> tuple[nn.Module, Any, Any]:
    """Train a BERT that finds masked characters.

    Returns:
        The network, calibration inputs, and what it is worth: its loss at masks in test text.
    """
    from transformers import BertConfig, BertForMaskedLM

    train, test, letters = text()
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=letters, max_position_embeddings=LENGTH, hidden_size=WIDTH, num_hidden_layers=3,
        num_attention_heads=4, intermediate_size=4 * WIDTH, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, pad_token_id=0,
    )  # fmt: skip
    net = BertForMaskedLM(config)

    def drawn(ids: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
        whole = windows(ids, count, seed)
        draw = torch.Generator().manual_seed(seed)
        hidden = torch.rand(whole.shape, generator=draw) < MASKED
        return whole.masked_fill(hidden, letters - 1), torch.where(hidden, whole, -100)

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten())

    _train(net, STEPS["bert"], lambda step: drawn(train, 32, step), loss)
    held, labels = drawn(test, 256, 10**6)

    @torch.no_grad()
    def worth(some: Any) -> float:
        everything = {"input_ids": held, "attention_mask": torch.ones_like(held)}
        return float(loss(some(**everything)["logits"], labels))

    u = drawn(train, 512, 10**7)[0]
    return net.eval(), {"input_ids": u, "attention_mask": torch.ones_like(u)}, worth


def _train(net: nn.Module, steps: int, batch: Any, loss: Any) -> None:
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps)
    for step in range(steps):
        ids, labels = batch(step)
        optimizer.zero_grad()
        loss(net(input_ids=ids)["logits"], labels).backward()
        optimizer.step()
        schedule.step()
