"""How a model computes: what may be chosen, and what excludes each other."""

import pytest

from ssd1b.errors import InputError
from ssd1b.execution import DEFAULT, Execution


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"backend": "opnvino"}, ["unknown backend 'opnvino'", "did you mean 'openvino'", "torch"]),
        ({"quantized": "int4"}, ["unknown quantization 'int4'", "int8-weights", "fp8"]),
        ({"quantized": 8}, ["quantized is 8", "text"]),
        ({"memory": "lo"}, ["unknown memory 'lo'", "did you mean 'low'", "normal"]),
        ({"compiled": "yes"}, ["compiled is 'yes'", "true or false"]),
        ({"backend": "openvino", "compiled": True}, ["openvino compiles by itself"]),
        ({"backend": "openvino", "memory": "low"}, ["leave those choices out"]),
        ({"backend": "openvino", "quantized": "fp8"}, ["quantizes to int8, not fp8"]),
        ({"memory": "low", "quantized": "int8"}, ["memory low has its own eight bits"]),
        ({"memory": "low", "compiled": True}, ["memory low", "not compiled"]),
    ],
)
def test_wrong_choices(given, words):
    with pytest.raises(InputError) as error:
        Execution(**given)
    assert all(word in str(error.value) for word in words), error.value


def test_what_is_said_of_them():
    assert str(DEFAULT) == "as by default"
    assert str(Execution(compiled=True, quantized="fp8")) == "compiled, fp8"
    assert str(Execution(backend="openvino", quantized="int8")) == "openvino, int8"
    assert str(Execution(memory="low")) == "low memory"
