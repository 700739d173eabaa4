"""Networks of torchvision, timm and transformers, and small ones of the usual kinds.

`NETWORKS[name]()` gives a network and four samples, as anyone would call it with: a tensor, a tuple
of tensors, or a table by name. Weights are random, sizes those of a laptop.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Case = Callable[[], tuple[nn.Module, Any]]


def images(side: int, channels: int = 3) -> Tensor:
    """Draw four images.

    Args:
        side: Height and width.
        channels: Of each.

    Returns:
        (4, channels, side, side).
    """
    return torch.randn(4, channels, side, side)


def ids(length: int = 16) -> Tensor:
    """Draw token ids.

    Args:
        length: Of each text.

    Returns:
        (4, length), from 3 to 99.
    """
    return torch.randint(3, 100, (4, length))


def tv(name: str, side: int = 64, *, path: str = "models", **options: Any) -> Case:
    """Take a class of torchvision.

    Args:
        name: Its builder.
        side: Of the images.
        path: Module it is in.
        **options: Of the builder.

    Returns:
        The case.
    """

    def make() -> tuple[nn.Module, Any]:
        from importlib import import_module

        library = import_module(f"torchvision.{path}")
        u = torch.randn(4, 3, 8, 32, 32) if "video" in path else images(side)
        return getattr(library, name)(weights=None, **{"num_classes": 10, **options}), u

    return make


def timm(name: str, side: int = 64, **options: Any) -> Case:
    """Take a class of timm.

    Args:
        name: Its name there.
        side: Of the images.
        **options: Of `create_model`.

    Returns:
        The case.
    """

    def make() -> tuple[nn.Module, Any]:
        import timm as library

        return library.create_model(name, pretrained=False, num_classes=10, **options), images(side)

    return make


class Pooled(nn.Module):
    """A backbone with a head on the mean over its places."""

    def __init__(self, net: nn.Module, key: str, width: int) -> None:
        super().__init__()
        self.net, self.key, self.head = net, key, nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.net(**{self.key: x})["last_hidden_state"].mean(1))


SMALL: dict[str, Any] = {
    "vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 64, "num_labels": 5, "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip


def hf(config: str, kind: str, how: str = "ids", **options: Any) -> Case:
    """Take a class of transformers.

    Args:
        config: Its configuration.
        kind: The class.
        how: What it is called with: `ids`, `masked` (ids and a mask), `floats` (ids as floats),
            `embedded`, `pairs` (ids for encoder and decoder), or a function that gives inputs.
        **options: Of the configuration, instead of small ones.

    Returns:
        The case.
    """

    def make() -> tuple[nn.Module, Any]:
        import transformers as library

        made = getattr(library, config)(**(options or SMALL))
        made.use_cache = False
        net = getattr(library, kind)(made)
        width = getattr(made, "hidden_size", None) or getattr(made, "d_model", 0)
        if how == "ids":
            return net, ids()
        if how == "masked":
            mask = torch.arange(16) < torch.tensor([[16], [9], [12], [16]])
            return net, {"input_ids": ids(), "attention_mask": mask.long()}
        if how == "pairs":
            return net, {"input_ids": ids(), "decoder_input_ids": ids(8)}
        if how == "embedded":
            embedded = net.get_input_embeddings()(ids()).detach()
            return Pooled(net, "inputs_embeds", width), embedded
        if how == "floats":
            return Floats(Pooled(net, "input_ids", width)), ids().double()
        return net, INPUTS[how]()

    return make


INPUTS: dict[str, Callable[[], Any]] = {
    "images": lambda: {"pixel_values": images(32)},
    "sound": lambda: {"input_values": torch.randn(4, 800)},
    "spectrum": lambda: {"input_features": torch.randn(4, 20, 100)},
    "both": lambda: {"input_ids": ids(), "pixel_values": images(32)},
}


class Floats(nn.Module):
    """Token ids given as floating-point numbers."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.long())


class Recurrent(nn.Module):
    """A recurrent layer and a head on its last state."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.rnn, self.head = kind(8, 16, batch_first=True), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


class UNet(nn.Module):
    """Two levels; up by transposed convolutions, or by interpolation."""

    def __init__(self, up: str = "transposed", flat: bool = False) -> None:
        super().__init__()

        def block(inputs: int, outputs: int) -> nn.Module:
            return nn.Sequential(
                nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(),
                nn.Conv2d(outputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(),
            )  # fmt: skip

        def grow(inputs: int, outputs: int) -> nn.Module:
            if up == "transposed":
                return nn.ConvTranspose2d(inputs, outputs, 2, 2)
            return nn.Sequential(
                nn.Upsample(scale_factor=2, mode=up), nn.Conv2d(inputs, outputs, 1)
            )

        self.a, self.b, self.c = block(3, 8), block(8, 16), block(16, 32)
        self.up2, self.up1, self.flat = grow(32, 16), grow(16, 8), flat
        self.d, self.e, self.out = block(32, 16), block(16, 8), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        b = self.b(F.max_pool2d(a, 2))
        c = self.c(F.max_pool2d(b, 2))
        y = self.d(torch.cat([self.up2(c), b], 1))
        y = self.out(self.e(torch.cat([self.up1(y), a], 1)))
        return y.flatten(1) if self.flat else y


class DEQ(nn.Module):
    """A layer applied again and again, ten times or until it stands still."""

    def __init__(self, steps: bool = True) -> None:
        super().__init__()
        self.W, self.U, self.head = nn.Linear(32, 32), nn.Linear(20, 32), nn.Linear(32, 5)
        self.steps = steps

    def forward(self, u: Tensor) -> Tensor:
        given = self.U(u)
        z = torch.zeros_like(given)
        for _ in range(10):
            new = torch.tanh(0.5 * self.W(z) + given)
            if not self.steps and (new - z).abs().max() < 1e-4:
                break
            z = new
        return self.head(z)


class Siamese(nn.Module):
    """One encoder for two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.f = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU())
        self.head = nn.Linear(32, 2)

    def forward(self, a: Tensor, b: Tensor | None = None) -> Tensor:
        x, y = self.f(a if b is not None else a[:, 0]), self.f(b if b is not None else a[:, 1])
        return self.head(torch.cat([(x - y).abs(), x * y], 1))


class PointNet(nn.Module):
    """Points by themselves, then their maximum."""

    def __init__(self) -> None:
        super().__init__()
        self.local = nn.Sequential(
            nn.Conv1d(3, 32, 1), nn.BatchNorm1d(32), nn.ReLU(),
            nn.Conv1d(32, 64, 1), nn.BatchNorm1d(64), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.local(x).max(2)[0])


class WaveNet(nn.Module):
    """Gated convolutions of growing dilation."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(1, 16, 1)
        self.gates = nn.ModuleList(nn.Conv1d(16, 32, 2, dilation=2**i) for i in range(4))
        self.skips = nn.ModuleList(nn.Conv1d(16, 16, 1) for _ in range(4))
        self.last = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x, total = self.first(x), 0
        for i, (gate, skip) in enumerate(zip(self.gates, self.skips, strict=True)):
            a, b = gate(F.pad(x, (2**i, 0))).chunk(2, 1)
            s = skip(torch.tanh(a) * torch.sigmoid(b))
            total, x = total + s, x + s
        assert isinstance(total, Tensor)
        return self.last(torch.relu(total)[:, :, -1])


class TwoHeads(nn.Module):
    """Boxes and classes."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Flatten())
        self.boxes, self.classes = nn.Linear(1800, 4), nn.Linear(1800, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.body(x)
        return self.boxes(x), self.classes(x)


def autoencoder() -> nn.Module:
    """Build a convolutional autoencoder of 28 × 28.

    Returns:
        The network.
    """
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(), nn.Flatten(),
        nn.Linear(16 * 49, 16), nn.Linear(16, 16 * 49), nn.ReLU(), nn.Unflatten(1, (16, 7, 7)),
        nn.ConvTranspose2d(16, 8, 3, 2, 1, 1), nn.ReLU(),
        nn.ConvTranspose2d(8, 1, 3, 2, 1, 1), nn.Flatten(),
    )  # fmt: skip


def ends(end: nn.Module) -> Case:
    """Build a classifier that ends in an activation.

    Args:
        end: The activation.

    Returns:
        The case.
    """
    body = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 5))
    return lambda: (nn.Sequential(body, end), torch.randn(4, 20))


T5 = {"vocab_size": 100, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4,
      "decoder_start_token_id": 0}  # fmt: skip
GPT2 = {"vocab_size": 100, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64,
        "num_labels": 5, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
FEW = {**SMALL, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2}
ALONE = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 2,
         "num_attention_heads": 4, "intermediate_size": 64, "num_labels": 5}  # fmt: skip
BART = {"vocab_size": 100, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2,
        "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1,
        "eos_token_id": 2, "decoder_start_token_id": 1}  # fmt: skip
WHISPER = {**BART, "num_mel_bins": 20, "max_source_positions": 50}
WAV = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
       "intermediate_size": 64, "conv_dim": (16, 16), "conv_stride": (5, 4), "conv_kernel": (10, 8),
       "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 16,
       "num_conv_pos_embedding_groups": 4}  # fmt: skip
SEG = {"num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [4, 2], "hidden_sizes": [16, 32],
       "patch_sizes": [7, 3], "strides": [4, 2], "num_attention_heads": [1, 2],
       "mlp_ratios": [2, 2], "decoder_hidden_size": 16, "num_labels": 5}  # fmt: skip


def whisper_encoder() -> tuple[nn.Module, Any]:
    """Take the encoder of Whisper.

    Returns:
        The case.
    """
    import transformers as library

    net = library.WhisperModel(library.WhisperConfig(**WHISPER)).encoder
    return Pooled(net, "input_features", 32), torch.randn(4, 20, 100)


def clip() -> tuple[nn.Module, Any]:
    """Take CLIP, which compares texts with images.

    Returns:
        The case: its text and image vectors.
    """
    import transformers as library

    text = {**SMALL, "projection_dim": 16, "eos_token_id": 2, "bos_token_id": 1}
    config = library.CLIPConfig(
        text_config=text, vision_config={**ALONE, "projection_dim": 16}, projection_dim=16
    )
    net = library.CLIPModel(config)

    class Vectors(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, input_ids: Tensor, pixel_values: Tensor) -> dict[str, Tensor]:
            found = self.net(input_ids=input_ids, pixel_values=pixel_values)
            return {"text": found.text_embeds, "image": found.image_embeds}

    return Vectors(), INPUTS["both"]()


TRIED: dict[str, Case] = {
    **{name: tv(name) for name in (
        "resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0",
        "densenet121", "vgg11_bn", "regnet_y_400mf", "convnext_tiny", "shufflenet_v2_x0_5",
        "squeezenet1_1", "mnasnet0_5", "swin_t",
    )},
    "googlenet": tv("googlenet", 96, aux_logits=False, init_weights=False),
    "inception_v3": tv("inception_v3", 96, aux_logits=False, init_weights=False),
    "regnetx_002": timm("regnetx_002"),
    "convnext_atto": timm("convnext_atto"),
    "vit_tiny": timm("vit_tiny_patch16_224", 64, img_size=64),
    "deit_tiny": timm("deit_tiny_patch16_224", 64, img_size=64),
    "swin_tiny": timm("swin_tiny_patch4_window7_224", 64, img_size=64, window_size=4),
    "mixer_s32": timm("mixer_s32_224", 64, img_size=64),
    "BERT, ids": hf("BertConfig", "BertForSequenceClassification"),
    "BERT, ids as floats": hf("BertConfig", "BertModel", "floats"),
    "BERT, embedded": hf("BertConfig", "BertModel", "embedded"),
    "GPT-2, ids": hf("GPT2Config", "GPT2LMHeadModel", **GPT2),
    "GPT-2, ids as floats": hf("GPT2Config", "GPT2Model", "floats", **GPT2),
    "GPT-2, embedded": hf("GPT2Config", "GPT2Model", "embedded", **GPT2),
    "Llama, ids as floats": hf("LlamaConfig", "LlamaModel", "floats", **FEW),
    "Llama, embedded": hf("LlamaConfig", "LlamaModel", "embedded", **FEW),
    "ViT (transformers)": hf("ViTConfig", "ViTForImageClassification", "images", **ALONE),
    "Whisper encoder": whisper_encoder,
    "T5 encoder, ids as floats": hf("T5Config", "T5EncoderModel", "floats", **T5),
    "T5 encoder, embedded": hf("T5Config", "T5EncoderModel", "embedded", **T5),
    "LSTM": lambda: (Recurrent(nn.LSTM), torch.randn(4, 12, 8)),
    "GRU": lambda: (Recurrent(nn.GRU), torch.randn(4, 12, 8)),
    "U-Net": lambda: (UNet(), images(32)),
    "U-Net, flattened": lambda: (UNet(flat=True), images(32)),
    "U-Net, bilinear": lambda: (UNet("bilinear", True), images(32)),
    "U-Net, nearest": lambda: (UNet("nearest", True), images(32)),
    "autoencoder": lambda: (autoencoder(), images(28, 1)),
    "DEQ, 10 steps": lambda: (DEQ(), torch.randn(4, 20)),
    "DEQ, until it stands still": lambda: (DEQ(False), torch.randn(4, 20)),
    "siamese": lambda: (Siamese(), (torch.randn(4, 20), torch.randn(4, 20))),
    "siamese, packed": lambda: (Siamese(), torch.randn(4, 2, 20)),
    "PointNet": lambda: (PointNet(), torch.randn(4, 3, 64)),
    "WaveNet": lambda: (WaveNet(), torch.randn(4, 1, 64)),
    "ends in softmax": ends(nn.Softmax(1)),
    "ends in sigmoid": ends(nn.Sigmoid()),
    "two heads": lambda: (TwoHeads(), images(32)),
}  # fmt: skip
"""The 49 on which capture was built."""

NEW: dict[str, Case] = {
    "DistilBERT": hf("DistilBertConfig", "DistilBertForSequenceClassification", "masked",
                     vocab_size=100, dim=32, n_layers=2, n_heads=4, hidden_dim=64,
                     max_position_embeddings=64, num_labels=5),
    "RoBERTa": hf("RobertaConfig", "RobertaForSequenceClassification", "masked"),
    "ALBERT": hf("AlbertConfig", "AlbertForSequenceClassification", "masked",
                 **SMALL, embedding_size=16),
    "ELECTRA": hf("ElectraConfig", "ElectraForTokenClassification", "masked",
                  **SMALL, embedding_size=16),
    "DeBERTa": hf("DebertaV2Config", "DebertaV2ForSequenceClassification", "masked"),
    "OPT": hf("OPTConfig", "OPTForCausalLM", "masked", **SMALL, ffn_dim=64,
              word_embed_proj_dim=32),
    "GPT-NeoX": hf("GPTNeoXConfig", "GPTNeoXForCausalLM", "ids"),
    "Mistral": hf("MistralConfig", "MistralForCausalLM", "ids", **FEW),
    "Qwen2": hf("Qwen2Config", "Qwen2ForCausalLM", "masked", **FEW),
    "BART": hf("BartConfig", "BartForConditionalGeneration", "pairs", **BART),
    "T5": hf("T5Config", "T5ForConditionalGeneration", "pairs", **T5),
    "CLIP": clip,
    "Wav2Vec2": hf("Wav2Vec2Config", "Wav2Vec2ForCTC", "sound", **WAV),
    "SegFormer": hf("SegformerConfig", "SegformerForSemanticSegmentation", "images", **SEG),
    "fcn_resnet50": tv("fcn_resnet50", path="models.segmentation", weights_backbone=None),
    "lraspp": tv("lraspp_mobilenet_v3_large", path="models.segmentation", weights_backbone=None),
    "r3d_18": tv("r3d_18", path="models.video"),
    "maxvit_t": tv("maxvit_t", 224),
    "mobilevit_xxs": timm("mobilevit_xxs"),
    "poolformer_s12": timm("poolformer_s12"),
    "gmlp_ti16": timm("gmlp_ti16_224", 64, img_size=64),
}  # fmt: skip
"""21 more, tried once capture was finished."""

NETWORKS = TRIED | NEW
