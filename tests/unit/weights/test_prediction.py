"""What a UNet predicts: who says it, who contradicts whom, and what a user says."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from ssd1b.errors import InputError
from ssd1b.weights.checkpoint import SDXL_SCHEDULER
from ssd1b.weights.files import read_header
from ssd1b.weights.opening import open_checkpoint

V, EPSILON = "v_prediction", "epsilon"


@pytest.fixture
def file_with(tmp_path, tiny_file):
    """A single file without a scheduler of its own, with metadata and empty tensors."""

    def write(metadata, *tensors):
        told = json.loads(read_header(tiny_file).metadata["ssd1b"])
        del told["scheduler"]
        path = tmp_path / "x.safetensors"
        marks = {name: torch.empty(0) for name in tensors}
        save_file({**load_file(tiny_file), **marks}, path, metadata={"ssd1b": json.dumps(told), **metadata})
        return path

    return write


@pytest.mark.parametrize(
    ("metadata", "tensors", "value", "source"),
    [
        ({"modelspec.prediction_type": "v"}, (), V, "modelspec.prediction_type"),
        ({"modelspec.prediction_type": "V_Prediction"}, (), V, "modelspec.prediction_type"),
        ({"modelspec.prediction_type": "epsilon"}, (), EPSILON, "modelspec.prediction_type"),
        ({"modelspec.predict_key": "v"}, (), V, "modelspec.predict_key"),
        ({"modelspec.predict_key": "epsilon"}, (), EPSILON, "modelspec.predict_key"),
        ({"ss_v_parameterization": "True"}, (), V, "ss_v_parameterization"),
        ({"ss_v_parameterization": "False", "ss_v2": "True"}, (), EPSILON, "ss_v_parameterization"),
        ({"ss_v2": "True"}, (), V, "ss_v2"),
        ({}, ("v_pred",), V, "v_pred"),
        ({"modelspec.prediction_type": "None", "ss_v2": "False"}, (), EPSILON, None),
        ({}, (), EPSILON, None),
    ],
)
def test_every_source(file_with, metadata, tensors, value, source):
    checkpoint = open_checkpoint(file_with(metadata, *tensors))
    assert checkpoint.scheduler == {**SDXL_SCHEDULER, "prediction_type": value}
    assert checkpoint.prediction == ({} if source is None else {source: value})
    assert checkpoint.info.scheduler["prediction_type"] == value


@pytest.mark.parametrize(("metadata", "tensors"), [({"ss_zero_terminal_snr": "True"}, ()), ({}, ("ztsnr",))])
def test_zero_terminal_snr(file_with, metadata, tensors):
    checkpoint = open_checkpoint(file_with(metadata, *tensors))
    assert checkpoint.scheduler["rescale_betas_zero_snr"] is True
    assert checkpoint.scheduler["timestep_spacing"] == "trailing"
    assert any("try --prediction v" in note for note in checkpoint.notes)
    assert not any("try" in note for note in open_checkpoint(checkpoint.path, prediction="v").notes)


def test_a_contradiction_is_named_and_the_user_decides(file_with):
    path = file_with({"modelspec.prediction_type": "epsilon"}, "v_pred")
    with pytest.raises(
        InputError, match=r"v_pred says 'v_prediction', modelspec\.prediction_type says 'epsilon'"
    ):
        _ = open_checkpoint(path).info
    for said, value in (("v", V), ("epsilon", EPSILON)):
        checkpoint = open_checkpoint(path, prediction=said)
        assert checkpoint.info.scheduler["prediction_type"] == value
        assert checkpoint.prediction == {"--prediction": value}


def test_another_prediction_is_named(file_with):
    path = file_with({"modelspec.prediction_type": "flow\x1b[2J"})
    with pytest.raises(InputError, match=r"predicts 'flow\\x1b\[2j' is not supported") as error:
        _ = open_checkpoint(path).info
    assert str(error.value).isprintable()


def test_only_two_can_be_asked_for(tiny_folder):
    with pytest.raises(InputError, match=r"unknown prediction 'velocity': .*allowed: epsilon, v"):
        open_checkpoint(tiny_folder, prediction="velocity")


def test_a_folder_says_it_in_its_scheduler(tiny_folder):
    assert open_checkpoint(tiny_folder).prediction == {"scheduler_config.json": EPSILON}
    assert open_checkpoint(tiny_folder, prediction="v").info.scheduler["prediction_type"] == V


def test_schedulers_that_are_missing_here_have_a_stand_in(tmp_path, tiny_folder):
    import shutil

    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    scheduler = folder / "scheduler" / "scheduler_config.json"
    told = {**json.loads(scheduler.read_text()), "_class_name": "SASolverScheduler", "corrector_order": 2}
    scheduler.write_text(json.dumps(told))
    checkpoint = open_checkpoint(folder)
    assert checkpoint.info.scheduler == told
    assert checkpoint.notes == ("'SASolverScheduler' is not available; dpmpp_2m_sde is used instead",)
    scheduler.write_text(json.dumps({**told, "_class_name": "EulerDiscreteScheduler"}))
    with pytest.raises(InputError, match="unknown scheduler setting 'corrector_order'"):
        _ = open_checkpoint(folder).info


def test_it_decides_the_key_of_a_sweeps_cell(tmp_path, tiny_folder):
    from contextlib import closing

    from ssd1b.jobs.store import Store
    from ssd1b.lab.sweep import describe

    with closing(Store(tmp_path / "sweep")) as store:
        found = [
            describe(str(tiny_folder), store.file_digest, offline=True, prediction=said).fingerprint
            for said in (None, "v", "epsilon")
        ]
    assert len(set(found)) == 3
