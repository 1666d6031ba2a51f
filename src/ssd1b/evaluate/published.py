"""Published metrics, with the published weights of their networks.

If a network's weights are missing, its metric is not available.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from ssd1b.errors import InputError, NotFoundError, UnavailableError
from ssd1b.weights import hub

SCORERS = {
    "CLIP score": "openai/clip-vit-large-patch14",
    "PickScore": "yuvalkirstain/PickScore_v1",
}
"""Scores of an image and its caption, and the hub repository of each score's CLIP model.

The CLIP score is 100 times the cosine (Hessel et al. 2021, 2104.08718, scaled as in torchmetrics). PickScore
is the same with a CLIP model trained on human preferences (Kirstain et al. 2023, 2305.01569).
"""

INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
"""The file name of the FID network, as published by torch-fidelity."""


class Scorer:
    """A CLIP model with its processor, loaded by transformers."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        """Load a folder in transformers' format.

        Raises:
            InputError: it does not contain a CLIP model.
        """
        from transformers import CLIPModel, CLIPProcessor  # slow to import

        try:
            # transformers' signatures are too loose to check.
            model: Any = CLIPModel.from_pretrained(folder, use_safetensors=True, local_files_only=True)
            self.processor: Any = CLIPProcessor.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise InputError(f"{folder}: not a readable CLIP model: {str(error).splitlines()[0]}") from error
        self.model = model.eval().to(device)

    @torch.inference_mode()
    def __call__(
        self, images: Sequence[Image.Image], captions: Sequence[str]
    ) -> Float[np.ndarray, " pictures"]:
        """Cosine of each image with its caption, times the model's temperature (100 in published models)."""
        scores = []
        for image, caption in zip(images, captions, strict=True):
            inputs = self.processor(
                text=[caption], images=[image], truncation=True, padding=True, return_tensors="pt"
            ).to(self.model.device)
            scores.append(float(self.model(**inputs).logits_per_image))
        return np.array(scores)


def find_scorers(device: torch.device, *, offline: bool) -> tuple[dict[str, Scorer], dict[str, str]]:
    """Load the networks of ``SCORERS``.

    Args:
        device: where the networks run.
        offline: use only the hub's cache.

    Returns:
        The available scorers, and the reason for each unavailable one, by name.
    """
    found, missing = {}, {}
    for name, repository in SCORERS.items():
        try:
            found[name] = Scorer(hub.resolve(repository, offline=offline).path, device)
        except InputError as error:
            missing[name] = str(error)
    return found, missing


class Inception:
    """The FID network: InceptionV3 in the variant that published figures use."""

    def __init__(self, weights: Path, device: torch.device) -> None:
        """Load the network's weights.

        Raises:
            InputError: the file or the library is missing.
        """
        if not weights.exists():
            raise NotFoundError(f"{weights} is missing: it is published with torch-fidelity's releases")
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import (  # type: ignore[import-not-found]
                FeatureExtractorInceptionV3,
            )
        except ImportError as error:
            raise UnavailableError(f"needs torch-fidelity, which cannot be imported: {error}") from error

        network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(weights))
        self.network = network.eval().to(device)
        self.device = device

    @torch.inference_mode()
    def __call__(self, images: Sequence[Image.Image]) -> Float[np.ndarray, "pictures features"]:
        """Compute the features of images of any size."""
        features: list[Tensor] = []
        for image in images:
            pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None].to(self.device)
            features.append(self.network(pixels)[0].cpu())
        return torch.cat(features).double().numpy()


def inception_weights() -> Path:
    """The path where torch-fidelity stores the weights."""
    return Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION
