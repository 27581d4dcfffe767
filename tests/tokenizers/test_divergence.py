"""An update that goes wrong in a phase's last step: its loss was fine, what it leaves is not."""

import re
from typing import Any

import pytest
import torch

from tests.tokenizers.planted import DIMS, plant
from trec_semid.core.errors import TrainingError
from trec_semid.tokenizers.codebook_fit import CodebookFitConfig
from trec_semid.tokenizers.inputs.alignment import ContrastiveConfig
from trec_semid.tokenizers.methods import build_tokenizer
from trec_semid.tokenizers.mmq_published import PublishedMmqConfig
from trec_semid.tokenizers.opq import OpqConfig
from trec_semid.tokenizers.rq_kmeans import RqKmeansConfig
from trec_semid.tokenizers.rq_vae import RqVaeConfig

NUM_ITEMS = 64
FIT = CodebookFitConfig(epochs=4, warmup_epochs=2, batch_size=NUM_ITEMS)
SPACE: dict[str, Any] = {
    "alignment": "contrastive",
    "contrastive": ContrastiveConfig(dim=8, epochs=4, batch_size=64),
}
CONFIGS = {
    "mmq_published": PublishedMmqConfig(codebook_size=4, latent_dim=8, decoder_widths=(16,), fit=FIT),
    "rq_vae": RqVaeConfig(codebook_size=4, levels=2, latent_dim=8, hidden_widths=(16,), fit=FIT),
    "rq_vae contrastive": RqVaeConfig(codebook_size=4, levels=2, fit=FIT, **SPACE),
    "rq_kmeans contrastive": RqKmeansConfig(codebook_size=4, levels=2, **SPACE),
    "opq contrastive": OpqConfig(codebook_size=4, subspaces=2, **SPACE),
}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("at", [1, 2, 3, 4], ids=lambda at: f"update {at}")
@pytest.mark.parametrize("name", list(CONFIGS))
def test_no_tokenizer_comes_out_of_a_last_update_that_went_wrong(name, at, value, monkeypatch):
    # Every epoch is one step: epochs 2 and 4 end the phases before and after codebooks start.
    plain, updates = torch.optim.AdamW.step, []

    def poisoned(self: torch.optim.AdamW, *args: Any, **kwargs: Any) -> Any:
        done = plain(self, *args, **kwargs)
        updates.append(1)
        if len(updates) == at:
            with torch.no_grad():
                self.param_groups[0]["params"][0].view(-1)[-1] = value
        return done

    monkeypatch.setattr(torch.optim.AdamW, "step", poisoned)
    catalogue = plant(NUM_ITEMS).catalogue
    torch.manual_seed(0)
    tokenizer = build_tokenizer(CONFIGS[name], DIMS)
    with pytest.raises(TrainingError) as error:
        list(tokenizer.fit(catalogue, catalogue.rows_with_content(), 0))
    assert re.search(r"is not finite after .*step \d+\. Lower \w+\.learning_rate", str(error.value))
    if "contrastive" not in name:
        assert f"epoch {at}, step {at}" in str(error.value)
