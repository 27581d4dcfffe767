"""The tokenizer's part in a training run: content, map, noise, and a watch over the codes."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trec_semid.core.arrays import Ints
from trec_semid.core.errors import TrainingError
from trec_semid.core.seeds import derive_seed
from trec_semid.data.ranking.batch_maker import DistinctItems
from trec_semid.layers.soft_index import GumbelNoise
from trec_semid.models.live_codes import FinetuneConfig, LiveCodes
from trec_semid.runtime.logs import RunLog
from trec_semid.runtime.ranks import Ranks, lone_work
from trec_semid.runtime.runs import RunFolder
from trec_semid.tokenizers.collisions import resolve_collisions
from trec_semid.tokenizers.encode import Encoded, encode_catalogue
from trec_semid.tokenizers.inputs.contents import Standardised
from trec_semid.tokenizers.inputs.shards import sum_over_ranks
from trec_semid.tokenizers.learned import LearnedTokenizer
from trec_semid.tokenizers.maps.semantic_ids import FILE, SemanticIds
from trec_semid.tokenizers.measures.quality import describe_quality, quality_metrics
from trec_semid.training.finetune.code_watch import CodeWatch
from trec_semid.training.finetune.effective_codes import codes_in_effect, sample_of, temperatures_of
from trec_semid.training.finetune.tokenizer import TOKENIZER, kind_of
from trec_semid.training.placement import PlacedContent
from trec_semid.training.steps import StepReport


def distinct_items(finetune: FinetuneConfig | None) -> DistinctItems | None:
    """Return what batches must bring."""
    if finetune is None:
        return None
    return DistinctItems(None if finetune.recent_items == "all" else finetune.recent_items)


def live_items(finetune: FinetuneConfig, longest: int) -> float:
    """Return how many items of a row have their codes chosen afresh, at most; histories have `longest`."""
    recent = finetune.recent_items
    return 1.0 + (longest if recent == "all" else min(recent, longest))


class Finetuning:
    """Feeds content to the model, keeps the map fresh, and stops a run whose codes collapse."""

    def __init__(
        self,
        config: FinetuneConfig,
        live: LiveCodes,
        content: PlacedContent,
        start: SemanticIds,
        ranks: Ranks,
        log: RunLog,
        *,
        seed: int,
        steps_per_epoch: int,
    ) -> None:
        """Take part in a run.

        Args:
            config: how the tokenizer learns.
            live: the codes inside the placed model, as `live_codes_of` finds them.
            content: that the tokenizer reads.
            start: the item -> code map that the run begins with.
            ranks: this process among its peers.
            log: of this rank.
            seed: of the run.
            steps_per_epoch: in which warm-up and noise are counted.
        """
        self.config, self.catalogue = config, content.catalogue
        self._live, self._content, self._start = live, content.tables, start
        self._seed, self._ranks, self._log = seed, ranks, log
        self._steps_per_epoch = steps_per_epoch
        self._noise_of = (0, 0)
        self._first_step = round(config.warmup_epochs * steps_per_epoch)
        self._watch = CodeWatch(start.codes, start.sizes, floor=config.entropy_floor)
        # Over the steps since the last look at the codes: sum of their agreement, and their number.
        self._equal: Tensor | float = 0.0
        self._seen = 0
        self._map_step = self._first_step  # until then nothing moves, and the map is exact
        self._sample = sample_of(content.catalogue, self.tokenizer.device)

    @property
    def tokenizer(self) -> LearnedTokenizer:
        """The tokenizer as it is now."""
        assert self._live.tokenizer is not None, "there is one where it is tuned"
        return self._live.tokenizer

    def moves(self, step: int) -> bool:
        """Tell whether the tokenizer learns in this step, counted from 1."""
        turn = self.config.turn_steps
        return self.has_moved(step) and (turn is None or (step - self._first_step - 1) // turn % 2 == 0)

    def has_moved(self, step: int) -> bool:
        """Tell whether the tokenizer has learnt in this step or in one before."""
        return self.config.estimator != "frozen" and step > self._first_step

    def is_ahead(self, step: int) -> bool:
        """Tell whether the tokenizer has not moved yet at this step, but will."""
        return self.config.estimator != "frozen" and step <= self._first_step

    def begin(self) -> None:
        """Set the temperature by the weights that the run starts from, and log the codes in effect."""
        if self.config.effective_codes is not None:
            found = temperatures_of(self.tokenizer, self._sample, self.config.effective_codes)
            self._live.temperature.copy_(found)
        self._log.scalars(self._in_effect(), step=0, event="codes_at_start")

    def state_dict(self) -> dict[str, Any]:
        """Return what the next look at the codes says of the steps before it, and the temperature."""
        said = {"map_step": self._map_step, "equal": float(self._equal), "seen": self._seen}
        return {**said, "temperature": self._live.temperature.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint, whose map the model holds already."""
        self._map_step, self._seen = int(state["map_step"]), int(state["seen"])
        self._equal = state["equal"]
        if "temperature" in state:  # of checkpoints from before it could be set by codes in effect
            self._live.temperature.copy_(torch.tensor(state["temperature"]))
        self._watch.last = self.map().codes

    def contents(self, rows: Tensor) -> Standardised:
        """Return the content of (n,) item rows; all ranks ask together."""
        return Standardised(*self._content(rows))

    def after_step(self, report: StepReport) -> None:
        """Count agreement of the codes just chosen with the map; nothing here waits for the device."""
        if self.moves(report.step):
            self._equal = self._equal + report.output.agreement.double()  # read when the codes are looked at
            self._seen += 1

    def is_refresh_due(self, step: int) -> bool:
        """Tell whether the map is refreshed after this step, whatever is evaluated."""
        every = self.config.refresh_steps
        is_end_of_turn = self.moves(step) and not self.moves(step + 1)  # what follows reads the map
        return is_end_of_turn or (every is not None and self.moves(step) and step % every == 0)

    def refresh(self, step: int) -> None:
        """Give all items the codes of the tokenizer as it is after this step, whose weights are finite."""
        self._refresh(step, with_errors=False)

    def before_evaluation(self, step: int, last_good: str | None) -> None:
        """Refresh the map, log how the codes are, and stop on a collapse.

        Raises:
            TrainingError: the codes have collapsed; names the last good checkpoint.
        """
        if not self.has_moved(step):
            return
        # Before `_refresh`, which sets `_map_step` to this step. In the model's turns the map is exact.
        staleness = sum(self.moves(each) for each in range(self._map_step + 1, step + 1))
        encoded = self._refresh(step)
        health = self._watch.look(encoded.codes)
        said = health.scalars(self.tokenizer.position_names)
        present = np.stack([np.asarray(mask, bool) for mask in self.catalogue.present.values()], axis=1)
        known = max(int(present.any(1).sum()), 1)
        said["codes/reconstruction"] = float(encoded.errors.sum()) / known
        said["codes/agreement"] = self._agreement()
        said |= self._in_effect()
        said["codes/staleness_steps"] = float(staleness)
        self._equal, self._seen = 0.0, 0
        self._log.scalars(said, step=step, event="codes")
        collapse = self._watch.collapse(health)
        if collapse:
            told = "It was the first evaluation. Start another run"
            if last_good:
                told = f"The last good checkpoint is {last_good}. Start another run from it (start_from)"
            raise TrainingError(
                f"step {step}: the semantic IDs have collapsed: {collapse}. {told}, with a lower "
                f"finetune.learning_rate, a higher {self._softness}, or heavier "
                f"anchors{self._other_estimator}."
            )

    @property
    def _softness(self) -> str:
        """The key that says how many codes pull at an item."""
        return "finetune.temperature" if self.config.effective_codes is None else "finetune.effective_codes"

    @torch.no_grad()
    def _in_effect(self) -> dict[str, float]:
        """Return how many codes of a position an item's soft index has in effect now."""
        counts = codes_in_effect(self.tokenizer, self._sample, self._live.temperature)
        by_name = zip(self.tokenizer.position_names, counts.tolist(), strict=True)
        of_positions = {f"codes/effective/{name}": count for name, count in by_name}
        return {"codes/effective": float(counts.mean()), **of_positions}

    @property
    def _other_estimator(self) -> str:
        """Advice that `load_learned` takes: noise is for codes of one level."""
        is_refused = self.config.estimator == "gumbel" or len(self.tokenizer.stages) > 1
        return "" if is_refused else ", or with finetune.estimator = 'gumbel'"

    def _agreement(self) -> float:
        """Return the mean over steps and ranks of the share of chosen codes that are the map's."""
        sums = torch.tensor([float(self._equal), float(self._seen)], dtype=torch.float64)
        equal, seen = sum_over_ranks(sums.to(self._live.codes.device)).tolist()
        return equal / max(seen, 1.0)

    def map(self) -> SemanticIds:
        """Return the item -> code map that the model reads now."""
        codes = self._live.codes.cpu().numpy().astype(np.int32)
        return SemanticIds(self._start.item_ids, codes, self.tokenizer.codebook_sizes, self._start.origin)

    def files(self) -> dict[str, bytes]:
        """Return the snapshot: the map and the tokenizer, for a checkpoint to hold with the weights."""
        written = {f"{TOKENIZER}/{name}": content for name, content in self.tokenizer.files().items()}
        return {FILE: self.map().to_bytes(), **written}

    def write(self, folder: RunFolder) -> dict[str, float]:
        """Write the tuned tokenizer, its map and its quality into the run; return metrics of the codes."""
        encoded = encode_catalogue(self.tokenizer, self.catalogue)
        rows = self.catalogue.rows_with_content()
        with lone_work():
            return self._write(folder, encoded, rows) if self._ranks.is_main else {}

    def _write(self, folder: RunFolder, encoded: Encoded, rows: Ints) -> dict[str, float]:
        # Codes of the map: those the ranker was selected with.
        known = encoded._replace(codes=self.map().codes)
        resolved = resolve_collisions("keep", self.tokenizer, self.catalogue, known)
        quality = describe_quality(
            self.tokenizer, kind_of(self.tokenizer), self.catalogue, resolved, rows, seed=self._seed
        )
        self.map().save(folder.path(FILE))
        self.tokenizer.save(folder.path(TOKENIZER))
        folder.write_json("quality.json", quality)
        changed = (self.map().codes != self._start.codes).any(1).mean()
        return quality_metrics(quality)[0] | {"all/churn": float(changed)}

    @torch.no_grad()
    def _refresh(self, step: int, *, with_errors: bool = True) -> Encoded:
        encoded = encode_catalogue(self.tokenizer, self.catalogue, with_errors=with_errors)
        self._live.codes.copy_(torch.from_numpy(encoded.codes))
        self._map_step = step
        return encoded

    def noise(self, step: int) -> GumbelNoise | None:
        """Return the noise on the choice in this step, anew for each batch; None where there is none."""
        if self.config.estimator != "gumbel":
            return None
        faded = (step - self._first_step) / (self.config.noise_decay_epochs * self._steps_per_epoch)
        scale = self.config.noise_start * max(0.0, 1.0 - faded)
        # Batches of a step are counted: each has noise of its own, the same again where a run goes on.
        self._noise_of = (step, self._noise_of[1] + 1) if self._noise_of[0] == step else (step, 0)
        seed = derive_seed(self._seed, "noise", *self._noise_of, self._ranks.rank)
        return GumbelNoise(scale, seed) if scale else None


def live_codes_of(model: nn.Module) -> LiveCodes:
    """Return the codes inside a model, placed or not."""
    return next(module for module in model.modules() if isinstance(module, LiveCodes))
