"""What a UNet predicts, noise or velocity: where files say it, and what holds if they do not agree.

No tensor's shape tells. Sources: ComfyUI ``comfy/supported_models.py`` (the tensors) and
``comfy_extras/nodes_model_merging.py`` (``modelspec.predict_key``), Stability-AI/ModelSpec
(``modelspec.prediction_type``), kohya's sd-scripts (``ss_*``), diffusers (``scheduler_config.json``).
"""

from collections.abc import Collection, Mapping

from ssd1b.errors import InputError, shown, unknown

EPSILON, VELOCITY = "epsilon", "v_prediction"

PREDICTIONS = {"epsilon": EPSILON, "v": VELOCITY}
"""What can be asked for, and diffusers' word for it."""

VELOCITY_KEY, ZERO_SNR_KEY = "v_pred", "ztsnr"
"""ComfyUI's signs of how a UNet was trained: empty tensors of these names."""

_WORDS = {
    **dict.fromkeys(("epsilon", "eps", "noise"), EPSILON),
    **dict.fromkeys(("v", "vpred", "vprediction", "velocity"), VELOCITY),
}
_TRUE, _FALSE = ("true", "1"), ("false", "0")


def diffusers_prediction(prediction: str | None) -> str | None:
    """Translate what a user asks for to diffusers' word.

    Raises:
        InputError: neither epsilon nor v.
    """
    if prediction is not None and prediction not in PREDICTIONS:
        raise unknown("prediction", prediction, PREDICTIONS)
    return prediction and PREDICTIONS[prediction]


def declared_predictions(metadata: Mapping[str, str], tensors: Collection[str]) -> dict[str, str]:
    """What a single file says its UNet predicts, by who says it.

    Args:
        metadata: of the file.
        tensors: names of its tensors.

    Returns:
        diffusers' word for each source; a word that is not known comes back as it is.
    """
    said = {VELOCITY_KEY: VELOCITY} if VELOCITY_KEY in tensors else {}
    for key in ("modelspec.prediction_type", "modelspec.predict_key"):
        word = metadata.get(key, "").strip().lower()
        if word not in ("", "none"):
            said[key] = _WORDS.get(word.replace("_", "").replace("-", ""), word)
    parameterization = metadata.get("ss_v_parameterization", "").strip().lower()
    if parameterization in (*_TRUE, *_FALSE):
        said["ss_v_parameterization"] = VELOCITY if parameterization in _TRUE else EPSILON
    elif metadata.get("ss_v2", "").strip().lower() in _TRUE:
        said["ss_v2"] = VELOCITY
    return said


def scheduler_prediction(config: Mapping[str, object], source: str, where: str) -> dict[str, str]:
    """What a ``scheduler_config.json`` says the UNet predicts, by the name of its source; empty if nothing.

    Raises:
        InputError: it is no text.
    """
    word = config.get("prediction_type")
    if word is not None and not isinstance(word, str):
        raise InputError(f"{where}: prediction_type must be a text, got {shown(word)}")
    return {} if word is None else {source: word}


def zero_snr(metadata: Mapping[str, str], tensors: Collection[str]) -> bool:
    """Whether a single file says that its UNet was trained to zero terminal signal-to-noise ratio."""
    return ZERO_SNR_KEY in tensors or metadata.get("ss_zero_terminal_snr", "").strip().lower() in _TRUE


def check_agreement(said: Mapping[str, str], where: str) -> None:
    """See that all who say what the UNet predicts say the same, and something that can be drawn with.

    Raises:
        InputError: they contradict each other, or one says something else than epsilon and v.
    """
    listed = ", ".join(f"{source} says {shown(word)}" for source, word in said.items())
    advice = "choose with --prediction epsilon or --prediction v"
    if strange := [word for word in said.values() if word not in (EPSILON, VELOCITY)]:
        raise InputError(
            f"{where}: a UNet that predicts {shown(strange[0])} is not drawn with ({listed}); {advice}"
        )
    if len(set(said.values())) > 1:
        raise InputError(f"{where}: what the UNet predicts is contradicted: {listed}; {advice}")
