"""Train the miniature's text encoders, contrastively with a small image tower (2103.00020)."""

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssd1b.layouts import CLIP_MINI, CLIP_MINI_2
from ssd1b.models.text import TextEncoder, TextEncoders, clip_tokenizer
from ssd1b.models.vision import CLIP_VISION_MINI, ImageEncoder
from ssd1b.tabletop.cache import Shards
from ssd1b.tabletop.captions import caption
from ssd1b.tabletop.scenes import scene
from ssd1b.tabletop.tokenizer import train_tokenizer
from ssd1b.tabletop.views import photograph, view
from ssd1b.training.loop import Batch, LoopSettings, train
from ssd1b.training.precision import computing_in, training_dtype

SETTINGS = LoopSettings(
    steps=600, batch_size=128, learning_rate=1e-3, decay_steps=300, warmup_steps=50, weight_decay=0.1,
    ema_decay=0.99, checkpoint_steps=100,
)  # fmt: skip
PICTURES = 8192
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
        self.text_encoder = TextEncoder(CLIP_MINI)
        self.text_encoder_2 = TextEncoder(CLIP_MINI_2)
        self.projection = nn.Linear(CLIP_MINI.hidden_size, width, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor([math.log(1 / 0.07)] * 2))

    def forward(self, pixels: Tensor, ids: Tensor, ids_2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings of pictures and, by each text encoder, of captions."""
        return (
            self.image_encoder(pixels),
            self.projection(self.text_encoder(ids)[1]),
            self.text_encoder_2(ids_2)[1],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionedPictures:
    """Pictures from the cache with a fresh caption each time they come up."""

    pictures: Shards
    tokenize: TextEncoders
    batch_size: int
    seed: int

    def __getitem__(self, step: int) -> Batch:
        """A batch without two pictures of the same index."""
        rng = np.random.default_rng((self.seed, step))
        indices = rng.choice(len(self.pictures), self.batch_size, replace=False)
        ids, ids_2 = self.tokenize.tokenize([caption(scene(self.seed, int(i)), rng) for i in indices])
        # Attention is causal and the end token's state is what counts: padding behind it is no work.
        length = int((ids_2.ids == CLIP_MINI_2.eos_token_id).int().argmax(dim=-1).max()) + 1
        return {
            "pixels": torch.from_numpy(self.pictures[indices]).permute(0, 3, 1, 2),
            "ids": ids.ids[:, 0, :length],
            "ids_2": ids_2.ids[:, 0, :length],
        }


def train_clip(
    out: Path, *, settings: LoopSettings = SETTINGS, resume: bool = False, device: str = "cpu"
) -> ContrastiveTrio:
    """Train all three encoders on renders and their captions."""
    torch.manual_seed(settings.seed)
    dtype = training_dtype(device)
    model = ContrastiveTrio().to(device)
    pictures = Shards(
        out / f"pictures-{settings.seed}", PICTURES, partial(_render, settings.seed), label="render pictures"
    )
    vocabulary, merges = train_tokenizer()
    encoders = TextEncoders(
        encoder=model.text_encoder,
        encoder_2=model.text_encoder_2,
        tokenizer=clip_tokenizer(vocabulary, merges, pad_token="<|endoftext|>"),
        tokenizer_2=clip_tokenizer(vocabulary, merges, pad_token="!"),
    )

    def loss(module: nn.Module, batch: Batch) -> dict[str, Tensor]:
        pixels = batch["pixels"].to(device).float() / 127.5 - 1.0
        image, *texts = computing_in(dtype, module)(
            pixels.to(dtype), batch["ids"].to(device), batch["ids_2"].to(device)
        )
        scales = module.logit_scale.clamp(max=MAX_LOGIT_SCALE).exp()  # type: ignore[union-attr, operator]
        terms = {}
        for name, text, scale in zip(("first", "second"), texts, scales, strict=True):
            logits = scale * F.normalize(image.float(), dim=-1) @ F.normalize(text.float(), dim=-1).T
            own = torch.arange(len(logits), device=device)
            terms[name] = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
            terms[f"{name}_accuracy"] = (logits.argmax(dim=0) == own).float().mean()
        return {"loss": terms["first"] + terms["second"], **terms}

    data = CaptionedPictures(
        pictures=pictures, tokenize=encoders, batch_size=settings.batch_size, seed=settings.seed
    )
    return train(model, data, loss, settings, out, resume=resume, label="clip")  # type: ignore[return-value]


def _render(seed: int, indices: range) -> np.ndarray:
    return np.stack([photograph(scene(seed, index), view(seed, index)) for index in indices])
