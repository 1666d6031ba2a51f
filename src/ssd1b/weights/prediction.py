"""What a UNet predicts, noise or velocity: the places where files declare it, and their agreement.

Shapes of tensors do not show it. Sources: ComfyUI ``comfy/supported_models.py`` (the tensors) and
``comfy_extras/nodes_model_merging.py`` (``modelspec.predict_key``), Stability-AI/ModelSpec
(``modelspec.prediction_type``), kohya's sd-scripts (``ss_*``), diffusers (``scheduler_config.json``).
"""

from collections.abc import Collection, Mapping

from ssd1b.errors import InputError, shown, unknown

EPSILON, VELOCITY = "epsilon", "v_prediction"

PREDICTIONS = {"epsilon": EPSILON, "v": VELOCITY}
"""diffusers' terms by the values of ``--prediction``."""

VELOCITY_KEY, ZERO_SNR_KEY = "v_pred", "ztsnr"
"""Names of empty tensors by which ComfyUI recognizes how a UNet was trained."""

_WORDS = {
    **dict.fromkeys(("epsilon", "eps", "noise"), EPSILON),
    **dict.fromkeys(("v", "vpred", "vprediction", "velocity"), VELOCITY),
}
_TRUE, _FALSE = ("true", "1"), ("false", "0")


def diffusers_prediction(prediction: str | None) -> str | None:
    """Translate a value of ``--prediction`` to diffusers' term.

    Raises:
        InputError: it is neither epsilon nor v.
    """
    if prediction is not None and prediction not in PREDICTIONS:
        raise unknown("prediction", prediction, PREDICTIONS)
    return prediction and PREDICTIONS[prediction]


def declared_predictions(metadata: Mapping[str, str], tensors: Collection[str]) -> dict[str, str]:
    """Find what a single file declares its UNet to predict.

    Args:
        metadata: metadata of the file.
        tensors: names of its tensors.

    Returns:
        diffusers' term by source; an unknown term is returned unchanged.
    """
    declared = {VELOCITY_KEY: VELOCITY} if VELOCITY_KEY in tensors else {}
    for key in ("modelspec.prediction_type", "modelspec.predict_key"):
        word = metadata.get(key, "").strip().lower()
        if word not in ("", "none"):
            declared[key] = _WORDS.get(word.replace("_", "").replace("-", ""), word)
    parameterization = metadata.get("ss_v_parameterization", "").strip().lower()
    if parameterization in (*_TRUE, *_FALSE):
        declared["ss_v_parameterization"] = VELOCITY if parameterization in _TRUE else EPSILON
    elif metadata.get("ss_v2", "").strip().lower() in _TRUE:
        declared["ss_v2"] = VELOCITY
    return declared


def scheduler_prediction(config: Mapping[str, object], source: str, where: str) -> dict[str, str]:
    """Read the prediction type of a ``scheduler_config.json``, by the name of its source; empty if missing.

    Raises:
        InputError: it is not text.
    """
    word = config.get("prediction_type")
    if word is not None and not isinstance(word, str):
        raise InputError(f"{where}: prediction_type must be text, got {shown(word)}")
    return {} if word is None else {source: word}


def zero_snr(metadata: Mapping[str, str], tensors: Collection[str]) -> bool:
    """Whether a single file declares that its UNet was trained to zero terminal signal-to-noise ratio."""
    return ZERO_SNR_KEY in tensors or metadata.get("ss_zero_terminal_snr", "").strip().lower() in _TRUE


def check_agreement(declared: Mapping[str, str], where: str) -> None:
    """Check that all declarations of what the UNet predicts agree and are supported.

    Raises:
        InputError: they contradict each other, or one is neither epsilon nor v.
    """
    listed = ", ".join(f"{source} says {shown(word)}" for source, word in declared.items())
    advice = "choose with --prediction epsilon or --prediction v"
    if unsupported := [word for word in declared.values() if word not in (EPSILON, VELOCITY)]:
        raise InputError(
            f"{where}: a UNet that predicts {shown(unsupported[0])} is not supported ({listed}); {advice}"
        )
    if len(set(declared.values())) > 1:
        raise InputError(f"{where}: declarations of the prediction type disagree: {listed}; {advice}")
