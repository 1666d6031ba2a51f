"""A prompt with an embedding is encoded as by diffusers after its two ``load_textual_inversion``."""

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file

from ssd1b.pipeline import Pipeline
from ssd1b.weights.checkpoint import ModelInfo
from ssd1b.weights.writing import save_folder
from tiny import TINY, worded_weights


@pytest.mark.parametrize("count", [1, 4])
def test_prompts_with_an_embedding(count: int, tmp_path: Path) -> None:
    folder = tmp_path / "model"  # with CLIP's own vocabulary, whose ids have no gaps
    save_folder(folder, ModelInfo(layout=TINY), worded_weights(TINY))
    widths = (TINY.text_encoder.hidden_size, TINY.text_encoder_2.hidden_size)
    path = tmp_path / "thing.safetensors"
    torch.manual_seed(2)
    save_file(
        {name: torch.randn(count, w) for name, w in zip(("clip_l", "clip_g"), widths, strict=True)}, path
    )
    oracle = StableDiffusionXLPipeline.from_pretrained(folder, local_files_only=True)
    for name, encoder, tokenizer in (
        ("clip_l", oracle.text_encoder, oracle.tokenizer),
        ("clip_g", oracle.text_encoder_2, oracle.tokenizer_2),
    ):  # fmt: skip
        oracle.load_textual_inversion(
            load_file(path)[name], token="<thing>", text_encoder=encoder, tokenizer=tokenizer
        )
    prompt, negative = "a <thing> and a red cube", "blurry <thing>"
    with torch.inference_mode():
        embeds, negative_embeds, pooled, negative_pooled = oracle.encode_prompt(
            prompt, negative_prompt=negative
        )
    pipeline = Pipeline.load(str(folder), device="cpu", dtype="fp32")
    given = {"negative_prompt": negative, "width": 64, "height": 64}
    settings = pipeline.settings(prompt, embeddings=[f"{path}:<thing>"], **given)
    unconditional, conditional = pipeline._conditioning(settings.prompts(), [settings])
    for ours, theirs in (
        (conditional.embeds, embeds), (conditional.pooled, pooled),
        (unconditional.embeds, negative_embeds), (unconditional.pooled, negative_pooled),
    ):  # fmt: skip
        assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()
    plain = pipeline.settings(prompt, **given)
    without, _ = pipeline._conditioning(plain.prompts(), [plain])
    assert (without.embeds - negative_embeds).abs().max() > 1e-2
