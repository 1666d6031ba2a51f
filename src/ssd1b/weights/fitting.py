"""Whether a model's networks fit together and can be drawn with: checked before anything is built."""

from ssd1b.errors import InputError, shown
from ssd1b.layouts import TextLayout, UNetLayout, VAELayout
from ssd1b.models.text import CONTEXT
from ssd1b.models.tokenizer import CLIPTokenizer

LATENT_CHANNELS = 4
"""Of the noise that drawing starts with."""

_TIME_IDS = 6
_PURPOSES = {5: ", as for depth", 7: ", as for upscaling", 8: ", as for editing", 9: ", as for inpainting"}


def check_unet(unet: UNetLayout, where: str) -> None:
    """See that a UNet takes latents, text and micro-conditioning, and nothing else.

    Raises:
        InputError: it needs more, or its embeddings cannot be computed.
    """
    given, channels, guidance = unet.in_channels, unet.out_channels, unet.guidance_embed_dim
    added = unet.pooled_dim + _TIME_IDS * unet.time_ids_dim
    if given != LATENT_CHANNELS:
        purpose = _PURPOSES.get(given, "")
        problem = f"the UNet takes {given} channels{purpose}; only those that take {LATENT_CHANNELS} can draw"
    elif channels != LATENT_CHANNELS:
        problem = f"the UNet gives {channels} channels; only those that give {LATENT_CHANNELS} can draw"
    elif unet.cross_attention_dim == 1280 and added == 1280 + 5 * unet.time_ids_dim:
        problem = "this is SDXL's refiner, which finishes a picture and draws none"
    elif unet.levels[0].channels % 2 or unet.time_ids_dim % 2:
        problem = "the UNet embeds time in an odd number of channels"
    elif guidance is not None and (guidance % 2 or guidance < 4):
        problem = f"the UNet embeds guidance in {guidance} channels; it must be an even number from 4"
    else:
        return
    raise InputError(f"{where}: {problem}")


def check_fit(unet: UNetLayout, vae: VAELayout, text: TextLayout, text_2: TextLayout, where: str) -> None:
    """See that the networks of a model fit together; ``check_unet`` comes first.

    Raises:
        InputError: one gives what another does not take.
    """
    attended, embedded = unet.cross_attention_dim, text.hidden_size + text_2.hidden_size
    pooled = text_2.projection_dim
    if attended != embedded:
        problem = f"the UNet attends to texts of {attended} channels, the text encoders give {embedded}"
    elif pooled != unet.pooled_dim:
        gives = "none: it has no text_projection" if pooled is None else f"{pooled}{_time_ids(unet, pooled)}"
        problem = f"the UNet takes a pooled text of {unet.pooled_dim} channels, text_encoder_2 gives {gives}"
    elif vae.latent_channels != unet.out_channels:
        latents = f"the UNet gives latents of {unet.out_channels} channels"
        problem = f"{latents}, the VAE takes {vae.latent_channels}"
    elif vae.factor > 8:
        problem = f"the VAE halves a picture {len(vae.channels) - 1} times; at most 3 times can be drawn with"
    else:
        _check_context(text, f"{where}: text_encoder")
        _check_context(text_2, f"{where}: text_encoder_2")
        return
    raise InputError(f"{where}: {problem}")


def _time_ids(unet: UNetLayout, pooled: int) -> str:
    """How many numbers beside the text the UNet would take if the text's width were right."""
    numbers, rest = divmod(unet.pooled_dim + _TIME_IDS * unet.time_ids_dim - pooled, unet.time_ids_dim)
    return f"; or it takes {numbers} numbers beside the text, not {_TIME_IDS}" if rest == 0 <= numbers else ""


def _check_context(layout: TextLayout, where: str) -> None:
    if layout.max_length < CONTEXT:
        raise InputError(f"{where} reads {layout.max_length} tokens; prompts come in chunks of {CONTEXT}")
    for name, number in (("bos_token_id", layout.bos_token_id), ("eos_token_id", layout.eos_token_id)):
        if not 0 <= number < layout.vocab_size:
            raise InputError(f"{where}: {name} {number} is not in the vocabulary of {layout.vocab_size}")


def check_tokenizer(tokenizer: CLIPTokenizer, layout: TextLayout, where: str) -> None:
    """See that a text encoder has an embedding for every token of its tokenizer.

    Raises:
        InputError: it has not.
    """
    token, number = max(tokenizer.vocabulary.items(), key=lambda item: item[1])
    if number >= layout.vocab_size:
        size = layout.vocab_size
        raise InputError(
            f"{where}: the tokenizer's {shown(token)} is number {number}, its encoder has {size} tokens"
        )
