"""A bundle in memory: ids in, probabilities out, without torchrec.

Legend: B rows, F features, D table width.
"""

import io
from typing import final

import torch
from torch import Tensor

from trec_semid.core.errors import DataError
from trec_semid.data.batches import Jagged
from trec_semid.serving.manifest import Manifest, read_checked, read_manifest
from trec_semid.serving.tables import BundleTable
from trec_semid.tokenizers.semantic_ids import SemanticIds


@final
class Bundle:
    """Tables, dense program and map of one exported model; every file is checked as it is read."""

    def __init__(self, uri: str) -> None:
        self.uri, self.manifest = uri, read_manifest(uri)
        self.tables = {facts.name: BundleTable(uri, facts) for facts in self.manifest.tables}
        program = torch.export.load(io.BytesIO(read_checked(uri, self.manifest.dense)))
        self._dense = program.module()

    @torch.no_grad()
    def scores(self, features: Jagged) -> Tensor:
        """Return (B,) probabilities.

        Args:
            features: ids of the manifest's features, in its order.
        """
        manifest = self.manifest
        if features.keys != tuple(feature.name for feature in manifest.features):
            raise DataError("features differ from the bundle's", file=self.uri, value=list(features.keys))
        lengths = features.lengths.long().view(len(features.keys), -1)
        values = features.values.split(lengths.sum(1).tolist())
        pooled = [
            _pool(self.tables[feature.table], ids, each, manifest)
            for feature, ids, each in zip(manifest.features, values, lengths, strict=True)
        ]
        return torch.sigmoid(self._dense(torch.cat(pooled, dim=1)))

    def semantic_ids(self, item_ids: list[str]) -> SemanticIds | None:
        """Return the map in the order of these items; None where the model reads no codes."""
        facts = self.manifest.semantic_ids
        if facts is None:
            return None
        read_checked(self.uri, facts)
        return SemanticIds.load(f"{self.uri}/{facts.file}", item_ids)


def _pool(table: BundleTable, ids: Tensor, lengths: Tensor, manifest: Manifest) -> Tensor:
    pooled = torch.zeros(len(lengths), manifest.dim)
    pooled.index_add_(0, torch.repeat_interleave(lengths), table.rows(ids))
    return pooled / lengths.clamp(min=1).unsqueeze(1) if manifest.pooling == "mean" else pooled
