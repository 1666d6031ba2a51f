"""Checks that a model's networks fit together and can generate images, before anything is built."""

from ssd1b.errors import InputError, shown
from ssd1b.layouts import TextLayout, UNetLayout, VAELayout
from ssd1b.models.text import CONTEXT
from ssd1b.models.tokenizer import CLIPTokenizer

LATENT_CHANNELS = 4
"""Channels of the initial noise."""

INPAINTING_CHANNELS = 9
"""Input channels of a UNet for inpainting: latents, mask, latents of the masked picture."""

_TIME_IDS = 6
_PURPOSES = {5: " (depth)", 7: " (upscaling)", 8: " (editing)"}


def check_unet(unet: UNetLayout, where: str) -> None:
    """Check that a UNet takes latents, text and micro-conditioning, for inpainting also mask and picture.

    Raises:
        InputError: it needs other inputs, or its embeddings cannot be computed.
    """
    given, channels, guidance = unet.in_channels, unet.out_channels, unet.guidance_embed_dim
    added = unet.pooled_dim + _TIME_IDS * unet.time_ids_dim
    if given not in (LATENT_CHANNELS, INPAINTING_CHANNELS):
        purpose, allowed = _PURPOSES.get(given, ""), f"{LATENT_CHANNELS} and {INPAINTING_CHANNELS}"
        problem = f"the UNet takes {given} channels{purpose}; only {allowed} (inpainting) are supported"
    elif channels != LATENT_CHANNELS:
        problem = f"the UNet returns {channels} channels; only {LATENT_CHANNELS} are supported"
    elif unet.cross_attention_dim == 1280 and added == 1280 + 5 * unet.time_ids_dim:
        problem = "this is SDXL's refiner, which finishes images but cannot generate any"
    elif unet.levels[0].channels % 2 or unet.time_ids_dim % 2:
        problem = "the UNet embeds time in an odd number of channels"
    elif guidance is not None and (guidance % 2 or guidance < 4):
        problem = f"the UNet embeds guidance in {guidance} channels; it must be an even number of at least 4"
    else:
        return
    raise InputError(f"{where}: {problem}")


def check_fit(unet: UNetLayout, vae: VAELayout, text: TextLayout, text_2: TextLayout, where: str) -> None:
    """Check that the networks of a model fit together, after ``check_unet``.

    Raises:
        InputError: one network's output does not fit another's input.
    """
    attended, embedded = unet.cross_attention_dim, text.hidden_size + text_2.hidden_size
    pooled = text_2.projection_dim
    if attended != embedded:
        problem = f"the UNet attends to {attended} text channels, but the text encoders return {embedded}"
    elif pooled != unet.pooled_dim:
        gives = "none: it has no text_projection" if pooled is None else f"{pooled}{_time_ids(unet, pooled)}"
        problem = f"the UNet takes {unet.pooled_dim} pooled text channels, but text_encoder_2 returns {gives}"
    elif vae.latent_channels != unet.out_channels:
        latents = f"the UNet returns latents of {unet.out_channels} channels"
        problem = f"{latents}, but the VAE takes {vae.latent_channels}"
    elif vae.factor > 8:
        problem = f"the VAE halves images {len(vae.channels) - 1} times; at most 3 are supported"
    else:
        _check_context(text, f"{where}: text_encoder")
        _check_context(text_2, f"{where}: text_encoder_2")
        return
    raise InputError(f"{where}: {problem}")


def _time_ids(unet: UNetLayout, pooled: int) -> str:
    """Say how many micro-conditioning numbers the UNet would take if the text's width were right."""
    numbers, rest = divmod(unet.pooled_dim + _TIME_IDS * unet.time_ids_dim - pooled, unet.time_ids_dim)
    return f"; or it takes {numbers} additional numbers, not {_TIME_IDS}" if rest == 0 <= numbers else ""


def _check_context(layout: TextLayout, where: str) -> None:
    if layout.max_length < CONTEXT:
        raise InputError(f"{where} takes {layout.max_length} tokens, but prompts have chunks of {CONTEXT}")
    for name, number in (("bos_token_id", layout.bos_token_id), ("eos_token_id", layout.eos_token_id)):
        if not 0 <= number < layout.vocab_size:
            raise InputError(f"{where}: {name} {number} is not in the vocabulary of {layout.vocab_size}")


def check_tokenizer(tokenizer: CLIPTokenizer, layout: TextLayout, where: str) -> None:
    """Check that a text encoder has an embedding for every token of its tokenizer.

    Raises:
        InputError: it lacks some.
    """
    token, number = max(tokenizer.vocabulary.items(), key=lambda item: item[1])
    if number >= layout.vocab_size:
        size = layout.vocab_size
        raise InputError(
            f"{where}: the tokenizer's {shown(token)} has the id {number}, but its encoder has {size} tokens"
        )
