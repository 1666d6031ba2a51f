"""Train the miniature's text encoders, contrastively with a small image tower (2103.00020)."""

import math
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ssd1b.layouts import CLIP_MINI, CLIP_MINI_2
from ssd1b.models.text import TextEncoder, TextEncoders
from ssd1b.models.vision import CLIP_VISION_MINI, ImageEncoder
from ssd1b.saving import claim_folder
from ssd1b.tabletop.miniature.cache import Shards
from ssd1b.tabletop.world.captions import caption, full_caption
from ssd1b.tabletop.world.scenes import WORLDS, Scene, World, scene
from ssd1b.tabletop.world.views import photograph, view
from ssd1b.training.loop import train
from ssd1b.training.precision import computing_in, convert_frozen, training_dtype
from ssd1b.training.settings import LoopSettings
from ssd1b.weights.vocabulary import load_tokenizer

SETTINGS = LoopSettings(
    steps=1300, batch_size=128, learning_rate=1e-3, decay_steps=580, warmup_steps=50, weight_decay=0.1,
    ema_decay=0.99, checkpoint_steps=100,
)  # fmt: skip
FURTHER = replace(SETTINGS, steps=700, warmup_steps=20)
"""Of a run that goes on with a trained model's encoders."""

LOCKED = replace(SETTINGS, steps=500, decay_steps=400, warmup_steps=20)
"""Of a run in which the image encoder alone follows finished text encoders (as LiT, 2111.07991, the other way
round)."""

PICTURES = 16 * 1024
LOOK_ALIKES = 16
"""Pictures of the same colours that stand in a batch together. Among random pictures colours alone nearly
always tell which caption is whose, and shapes, sizes and places were not learned (docs/log)."""

MAX_LOGIT_SCALE = math.log(100.0)


class ContrastiveTrio(nn.Module):
    """Two text encoders that both learn to name the picture that one image encoder sees.

    SDXL's first encoder was trained with an image encoder of its own. Here one tower teaches both; the first
    encoder's projection is dropped afterwards, as SDXL has none.
    """

    def __init__(self) -> None:
        super().__init__()
        width = CLIP_VISION_MINI.projection_dim
        self.image_encoder = ImageEncoder(CLIP_VISION_MINI)
        self.text_encoder = _from_scratch(TextEncoder(CLIP_MINI))
        self.text_encoder_2 = _from_scratch(TextEncoder(CLIP_MINI_2))
        self.projection = nn.Linear(CLIP_MINI.hidden_size, width, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor([math.log(1 / 0.07)] * 2))

    def forward(self, pixels: Tensor, ids: Tensor, ids_2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings of pictures and, by each text encoder, of captions."""
        return (
            self.image_encoder(pixels),
            self.projection(self.text_encoder(ids)[1]),
            self.text_encoder_2(ids_2)[1],
        )


def _from_scratch(encoder: TextEncoder) -> TextEncoder:
    """Give the matrices OpenAI's initial spread (openai/CLIP ``clip/model.py``), the deeper the narrower."""
    width = encoder.layout.hidden_size
    inner, outer = width**-0.5, (2 * width * encoder.layout.layers) ** -0.5
    spreads = {"out_proj": outer, "fc1": (2 * width) ** -0.5, "fc2": outer}
    embeddings = encoder.text_model.embeddings
    nn.init.normal_(embeddings.get_parameter("token_embedding.weight"), std=0.02)
    nn.init.normal_(embeddings.get_parameter("position_embedding.weight"), std=0.01)
    for name, module in encoder.named_modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=spreads.get(name.rpartition(".")[2], inner))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return encoder


class PairBatch(NamedTuple):
    """Pictures and their captions.

    Attributes:
        pixels: ``[B, 3, H, W]``, uint8.
        twins: ``[B, B]``, True where a caption describes another picture as well.
        ids: tokens of the first text encoder, ``[B, T]``.
        ids_2: of the second.
    """

    pixels: Tensor
    twins: Tensor
    ids: Tensor
    ids_2: Tensor


@dataclass(frozen=True, kw_only=True)
class CaptionedPictures:
    """Pictures from the cache with a fresh caption each time they come up."""

    pictures: Shards
    tokenize: TextEncoders
    batch_size: int
    seed: int
    world: World

    @cached_property
    def _colors(self) -> NDArray[np.intp]:
        """A number for each picture, the same for pictures of the same colours, near for similar ones."""
        colors = [_colors(scene(self.seed, index, world=self.world)) for index in range(len(self.pictures))]
        rank = {each: number for number, each in enumerate(sorted(set(colors)))}
        return np.array([rank[each] for each in colors])

    def __getitem__(self, step: int) -> PairBatch:
        """A batch of groups of look-alikes, without two pictures of the same index."""
        rng = np.random.default_rng((self.seed, step))
        order = rng.permutation(len(self.pictures))
        order = order[np.argsort(self._colors[order], kind="stable")]
        groups = order.reshape(-1, LOOK_ALIKES)
        chosen = rng.choice(len(groups), self.batch_size // LOOK_ALIKES, replace=False)
        scenes = [scene(self.seed, int(index), world=self.world) for index in groups[chosen].flat]
        ids, ids_2 = self.tokenize.tokenize([caption(each, rng) for each in scenes])
        said = [full_caption(each) for each in scenes]
        # Attention is causal and the end token's state is what counts: padding behind it is no work.
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
        out: of the run.
        tokenizers: folder of each tokenizer, by the text encoder's name.
        start: encoders to go on with, in place of new ones; what is frozen of them stays as it is.
        settings: of the run.
        world: a key of ``WORLDS``.
        resume: go on with the run in ``out``.
        device: where to train.
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
        pixels = batch.pixels.to(device).float() / 127.5 - 1.0
        image, *texts = computing_in(dtype, module)(
            pixels.to(dtype), batch.ids.to(device), batch.ids_2.to(device)
        )
        scales = module.logit_scale.clamp(max=MAX_LOGIT_SCALE).exp()  # type: ignore[union-attr, operator]
        # Of two pictures that nothing in words tells apart, either is right: the other one does not count.
        own = torch.arange(len(batch.twins), device=device)
        others = batch.twins.to(device).fill_diagonal_(False)
        terms = {}
        for name, text, scale in zip(("first", "second"), texts, scales, strict=True):
            logits = scale * F.normalize(image.float(), dim=-1) @ F.normalize(text.float(), dim=-1).T
            logits = logits.masked_fill(others, -torch.inf)
            terms[name] = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
            terms[f"{name}_accuracy"] = (logits.argmax(dim=0) == own).float().mean()
        return {"loss": terms["first"] + terms["second"], **terms}

    data = CaptionedPictures(
        pictures=pictures,
        tokenize=encoders,
        batch_size=settings.batch_size,
        seed=settings.seed,
        world=WORLDS[world],
    )
    return train(model, data, loss, settings, out, resume=resume, label="clip")  # type: ignore[return-value]


def _colors(scene: Scene) -> tuple[str, ...]:
    return scene.background, *sorted(solid.color for solid in scene.solids)


def _render(seed: int, world: World, indices: range) -> np.ndarray:
    return np.stack([photograph(scene(seed, index, world=world), view(seed, index)) for index in indices])
