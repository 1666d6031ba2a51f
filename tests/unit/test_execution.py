"""Execution options: allowed values, and options that exclude each other."""

import pytest

from ssd1b.errors import InputError
from ssd1b.execution import DEFAULT, Execution


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"backend": "opnvino"}, ["unknown backend 'opnvino'", "did you mean 'openvino'", "torch"]),
        ({"quantized": "int4"}, ["unknown quantization 'int4'", "int8-weights", "fp8"]),
        ({"quantized": 8}, ["quantized is 8", "text"]),
        ({"memory": "lo"}, ["unknown memory 'lo'", "did you mean 'low'", "normal"]),
        ({"compiled": "yes"}, ["compiled is 'yes'", "true or false"]),
        ({"backend": "openvino", "compiled": True}, ["openvino excludes compile"]),
        ({"backend": "openvino", "memory": "low"}, ["excludes compile and low memory"]),
        ({"backend": "openvino", "quantized": "fp8"}, ["quantizes to int8, not fp8"]),
        ({"memory": "low", "quantized": "int8"}, ["low memory excludes", "int8-weights"]),
        ({"memory": "low", "compiled": True}, ["low memory excludes compile"]),
    ],
)
def test_wrong_options(options, words):
    with pytest.raises(InputError) as error:
        Execution(**options)
    assert all(word in str(error.value) for word in words), error.value


def test_non_default_options_are_listed():
    assert str(DEFAULT) == "default"
    assert str(Execution(compiled=True, quantized="fp8")) == "compiled, fp8"
    assert str(Execution(backend="openvino", quantized="int8")) == "openvino, int8"
    assert str(Execution(memory="low")) == "low memory"
