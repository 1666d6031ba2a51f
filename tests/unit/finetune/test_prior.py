"""Prior preservation: a model that is its own prior changes less for the prompts that it keeps."""

import torch

from ssd1b.finetune.layers import adapt
from ssd1b.finetune.prior import Preservation, loss_terms, without_adapters
from ssd1b.finetune.settings import KINDS, make_settings
from ssd1b.models.text import Conditioning
from ssd1b.models.unet import UNet
from ssd1b.training.batches import LatentBatch
from ssd1b.training.objective import Objective
from tiny import DRAWABLE, inputs

OBJECTIVE = Objective(text=None, device="cpu", dtype=torch.float32)


def adapted(kind="lora"):
    torch.manual_seed(0)
    unet = UNet(DRAWABLE.unet).eval()
    adapt(unet, make_settings(None, {"rank": 2, "kind": kind, "data.path": "x"}, size=64))
    return unet


def batch(seed):
    torch.manual_seed(seed)
    given = inputs(DRAWABLE.unet, 8, 8)
    text = Conditioning(given.prompt_embeds, given.pooled_prompt_embeds)
    return LatentBatch(given.latents, text, given.time_ids, torch.ones(len(given.latents), dtype=torch.bool))


def train(unet, weight, kept):
    """Learn one batch; return the final terms."""

    def before(*given):
        with without_adapters(unet):
            return unet(*given)

    optimizer = torch.optim.Adam([each for each in unet.parameters() if each.requires_grad], lr=0.01)
    terms = {}
    for _ in range(8):
        torch.manual_seed(100)
        terms = loss_terms(OBJECTIVE, unet, batch(1), Preservation(kept, before), weight)
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
    return {name: float(each.detach()) for name, each in terms.items()}


def test_a_model_that_is_its_own_prior_stays_closer_to_itself():
    kept = batch(2).text
    free, bound = (train(adapted(), weight, kept) for weight in (0.0, 10.0))
    assert bound["preserved"] < free["preserved"] / 2
    assert free["preserved"] > 1e-4


def test_adapters_are_off_only_inside():
    for kind in KINDS:
        unet = adapted(kind)
        given = inputs(DRAWABLE.unet, 8, 8)
        with torch.no_grad():
            plain = unet(*given)
            for each in unet.parameters():
                if each.requires_grad:
                    each.add_(0.1 * torch.randn_like(each))
            changed = unet(*given)
            with without_adapters(unet):
                assert (unet(*given) - plain).abs().max() <= 1e-5, kind
            assert unet(*given).equal(changed) and not changed.allclose(plain, atol=1e-3), kind


def test_both_losses_of_a_pair_count():
    unet = adapted()
    torch.manual_seed(3)
    pair = loss_terms(OBJECTIVE, unet, (batch(1), batch(2)), None, 0.5)
    assert pair.keys() == {"loss", "subject", "prior"}
    torch.testing.assert_close(pair["loss"], pair["subject"] + 0.5 * pair["prior"])
    assert loss_terms(OBJECTIVE, unet, batch(1), None, 0.5).keys() == {"loss"}
