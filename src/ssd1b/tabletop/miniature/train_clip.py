"""Contrastive training of the miniature's text encoders with a small image encoder (2103.00020)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ssd1b.layouts import CLIP_MINI, CLIP_MINI_2, CLIP_VISION_MINI
from ssd1b.models.text import TextEncoder, TextEncoders
from ssd1b.models.vision import ImageEncoder
from ssd1b.saving import claim_folder
from ssd1b.tabletop.miniature.cache import Shards
from ssd1b.tabletop.world.captions import caption, full_caption
from ssd1b.tabletop.world.scenes import WORLDS, Scene, World, scene
from ssd1b.tabletop.world.views import photograph, view
from ssd1b.tensors import from_levels
from ssd1b.training.loop import train
from ssd1b.training.precision import computing_in, convert_frozen, training_dtype
from ssd1b.training.settings import LoopSettings
from ssd1b.weights.vocabulary import load_tokenizer

SETTINGS = LoopSettings(
    steps=1300, batch_size=128, learning_rate=1e-3, decay_steps=580, warmup_steps=50, weight_decay=0.1,
    ema_decay=0.99, checkpoint_steps=100,
)  # fmt: skip
FINETUNING = replace(SETTINGS, steps=700, warmup_steps=20)
"""Settings for finetuning a model's encoders."""

LOCKED_TEXT = replace(SETTINGS, steps=500, decay_steps=400, warmup_steps=20)
"""Settings for training the image encoder with frozen text encoders (the reverse of LiT, 2111.07991)."""

PICTURES = 16 * 1024
LOOK_ALIKES = 16
"""Images with the same colours per group of a batch. Among random images, colours alone nearly always
identify the caption, and shapes, sizes and positions were not learned (docs/log)."""

MAX_LOGIT_SCALE = math.log(100.0)


class ContrastiveTrio(nn.Module):
    """Two text encoders trained contrastively with one image encoder.

    SDXL's two text encoders were trained with different image encoders. The first one's projection is dropped
    after training, since SDXL has none.
    """

    def __init__(self) -> None:
        super().__init__()
        width = CLIP_VISION_MINI.projection_dim
        self.image_encoder = _vision_from_scratch(ImageEncoder(CLIP_VISION_MINI))
        self.text_encoder = _from_scratch(TextEncoder(CLIP_MINI))
        self.text_encoder_2 = _from_scratch(TextEncoder(CLIP_MINI_2))
        self.projection = nn.Linear(CLIP_MINI.hidden_size, width, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor([math.log(1 / 0.07)] * 2))

    def forward(self, pixels: Tensor, ids: Tensor, ids_2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the embeddings of images, and of captions by each text encoder."""
        return (
            self.image_encoder(pixels),
            self.projection(self.text_encoder(ids)[1]),
            self.text_encoder_2(ids_2)[1],
        )


def _from_scratch(encoder: TextEncoder) -> TextEncoder:
    """Initialise as OpenAI does (openai/CLIP ``clip/model.py``), with spreads that fall with the depth."""
    width = encoder.layout.hidden_size
    inner, outer = width**-0.5, (2 * width * encoder.layout.layers) ** -0.5
    spreads = {"out_proj": outer, "fc1": (2 * width) ** -0.5, "fc2": outer}
    embeddings = encoder.text_model.embeddings
    nn.init.normal_(embeddings.get_parameter("token_embedding.weight"), std=0.02)
    nn.init.normal_(embeddings.get_parameter("position_embedding.weight"), std=0.01)
    _spread(encoder, spreads, inner)
    return encoder


def _vision_from_scratch(encoder: ImageEncoder) -> ImageEncoder:
    """Initialise as transformers does (``CLIPPreTrainedModel._init_weights``)."""
    width = encoder.layout.hidden_size
    inner, outer = width**-0.5, (2 * width * encoder.layout.layers) ** -0.5
    embeddings = encoder.vision_model.embeddings
    nn.init.normal_(embeddings.class_embedding, std=inner)
    nn.init.normal_(embeddings.patch_embedding.weight, std=0.02)
    nn.init.normal_(embeddings.position_embedding.weight, std=0.02)
    spreads = {name: outer for name in ("q_proj", "k_proj", "v_proj", "fc2")}
    _spread(encoder, {**spreads, "fc1": (2 * width) ** -0.5}, inner)
    return encoder


def _spread(network: nn.Module, spreads: Mapping[str, float], otherwise: float) -> None:
    """Draw the weights of linear layers with spreads by their names; biases become 0."""
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=spreads.get(name.rpartition(".")[2], otherwise))
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class PairBatch(NamedTuple):
    """Images with their captions.

    Attributes:
        pixels: ``[B, 3, H, W]``, uint8.
        twins: ``[B, B]``, True if two images have the same full caption.
        ids: tokens of the first text encoder, ``[B, T]``.
        ids_2: tokens of the second text encoder, ``[B, T]``.
    """

    pixels: Tensor
    twins: Tensor
    ids: Tensor
    ids_2: Tensor


@dataclass(frozen=True, kw_only=True)
class CaptionedPictures:
    """Cached images with a new caption each time they are used."""

    pictures: Shards
    tokenize: TextEncoders
    batch_size: int
    seed: int
    world: World

    @cached_property
    def _colors(self) -> NDArray[np.intp]:
        """A rank for each image: equal for the same colours, close for similar ones."""
        colors = [_colors(scene(self.seed, index, world=self.world)) for index in range(len(self.pictures))]
        rank = {each: number for number, each in enumerate(sorted(set(colors)))}
        return np.array([rank[each] for each in colors])

    def __getitem__(self, step: int) -> PairBatch:
        """Return a batch of groups of look-alikes, with no image twice."""
        rng = np.random.default_rng((self.seed, step))
        order = rng.permutation(len(self.pictures))
        order = order[np.argsort(self._colors[order], kind="stable")]
        groups = order.reshape(-1, LOOK_ALIKES)
        chosen = rng.choice(len(groups), self.batch_size // LOOK_ALIKES, replace=False)
        scenes = [scene(self.seed, int(index), world=self.world) for index in groups[chosen].flat]
        ids, ids_2 = self.tokenize.tokenize([caption(each, rng) for each in scenes])
        said = [full_caption(each) for each in scenes]
        # Attention is causal and only the end token's state is used, so padding behind it can be cut off.
        length = int((ids_2.ids == CLIP_MINI_2.eos_token_id).int().argmax(dim=-1).max()) + 1
        return PairBatch(
            pixels=torch.from_numpy(self.pictures[groups[chosen].ravel()]).permute(0, 3, 1, 2),
            twins=torch.tensor([[one == other for other in said] for one in said]),
            ids=ids.ids[:, 0, :length],
            ids_2=ids_2.ids[:, 0, :length],
        )


def train_clip(
    out: Path, tokenizers: dict[str, Path], *, start: ContrastiveTrio | None = None,
    settings: LoopSettings = SETTINGS, world: str = "plain", resume: bool = False, device: str = "cpu",
) -> ContrastiveTrio:  # fmt: skip
    """Train all three encoders on renders and their captions.

    Args:
        out: folder of the run.
        tokenizers: folder of each tokenizer, by the text encoder's name.
        start: encoders to finetune, except for their frozen parameters; None creates new ones.
        settings: of the run.
        world: a key of ``WORLDS``.
        resume: continue the run in ``out``.
        device: to train on.
    """
    torch.manual_seed(settings.seed)
    dtype = training_dtype(device)
    model = (start or ContrastiveTrio()).to(device)
    convert_frozen(model, dtype)
    claim_folder(out)
    pictures = Shards(
        out / f"pictures-{world}-{settings.seed}",
        PICTURES,
        partial(_render, settings.seed, WORLDS[world]),
        label="render pictures",
    )
    encoders = TextEncoders(
        encoder=model.text_encoder,
        encoder_2=model.text_encoder_2,
        tokenizer=load_tokenizer(tokenizers["text_encoder"]),
        tokenizer_2=load_tokenizer(tokenizers["text_encoder_2"]),
    )

    def loss(module: nn.Module, batch: PairBatch) -> dict[str, Tensor]:
        pixels = from_levels(batch.pixels.to(device))
        image, *texts = computing_in(dtype, module)(
            pixels.to(dtype), batch.ids.to(device), batch.ids_2.to(device)
        )
        scales = module.logit_scale.clamp(max=MAX_LOGIT_SCALE).exp()  # type: ignore[union-attr, operator]
        return _contrastive_terms(image, texts, scales, batch.twins.to(device))

    data = CaptionedPictures(
        pictures=pictures,
        tokenize=encoders,
        batch_size=settings.batch_size,
        seed=settings.seed,
        world=WORLDS[world],
    )
    return train(model, data, loss, settings, out, resume=resume, label="clip")  # type: ignore[return-value]


def _contrastive_terms(
    image: Tensor, texts: list[Tensor], scales: Tensor, twins: Tensor
) -> dict[str, Tensor]:
    """Return CLIP's loss of both text encoders; an image and its twins are not negatives of each other."""
    targets = torch.arange(len(twins), device=twins.device)
    others = twins.fill_diagonal_(False)
    terms = {}
    for name, text, scale in zip(("first", "second"), texts, scales, strict=True):
        logits = scale * F.normalize(image.float(), dim=-1) @ F.normalize(text.float(), dim=-1).T
        logits = logits.masked_fill(others, -torch.inf)
        terms[name] = (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2
        terms[f"{name}_accuracy"] = (logits.argmax(dim=0) == targets).float().mean()
    return {"loss": terms["first"] + terms["second"], **terms}


def _colors(scene: Scene) -> tuple[str, ...]:
    return scene.background, *sorted(solid.color for solid in scene.solids)


def _render(seed: int, world: World, indices: range) -> np.ndarray:
    return np.stack([photograph(scene(seed, index, world=world), view(seed, index)) for index in indices])
