"""Networks computed in 16 bits on parameters of 32, on every machine, whatever it would choose itself."""

import pytest
import torch

from ssd1b.models.text import TextEncoder
from ssd1b.training.precision import computing_in
from tiny import TINY


@pytest.mark.parametrize("part", ["text_encoder", "text_encoder_2"])
def test_text_encoders_learn_in_16_bits(part):
    torch.manual_seed(0)
    encoder = TextEncoder(getattr(TINY, part))
    ids = torch.randint(0, 100, (2, 77))
    states, pooled = computing_in(torch.bfloat16, encoder)(ids)
    assert states.dtype == pooled.dtype == torch.bfloat16
    expected = encoder(ids)[0]
    assert (states.float() - expected).norm() < 0.05 * expected.norm()
    (states.sum() + pooled.sum()).backward()
    gradients = {name: each.grad for name, each in encoder.named_parameters()}
    assert gradients["text_model.embeddings.position_embedding.weight"].abs().sum() > 0
