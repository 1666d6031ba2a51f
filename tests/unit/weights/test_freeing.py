"""Nothing of a model stays in memory when its pipeline is gone."""

import gc
from pathlib import Path
from weakref import ref

from ssd1b.pipeline import Pipeline


def test_networks_and_tokenizers_are_freed_with_their_pipeline(tiny_model: Path) -> None:
    """Caches that are shared by all pipelines must not keep them; a tokenizer takes 25 MB."""
    pipeline = Pipeline.load(str(tiny_model), device="cpu")
    pipeline.generate("a cat", seed=1)
    text = pipeline.text
    kept = {"unet": pipeline.unet, "vae": pipeline.vae, "text encoder": text.encoder,
            "tokenizer": text.tokenizer, "second tokenizer": text.tokenizer_2}  # fmt: skip
    weak = {name: ref(each) for name, each in kept.items()}
    del pipeline, text, kept
    gc.collect()
    assert [name for name, each in weak.items() if each() is not None] == []
