"""A bundle in memory: ids in, probabilities out, without torchrec.

Legend: B rows, F features, D table width.
"""

import io
from typing import final

import pyarrow as pa
import torch
from torch import Tensor

from trec_semid.checkpoints.manifest import Manifest, read_checked, verify_bundle
from trec_semid.core.paths import join
from trec_semid.data.batches import Jagged
from trec_semid.serving.ids import check_features
from trec_semid.serving.tables import BundleTable
from trec_semid.tokenizers.maps.semantic_ids import SemanticIds


@final
class Bundle:
    """Tables, dense program and map of one exported model; opening it checks every file.

    Raises:
        DataError: a file is missing or is not the one that was exported.
    """

    def __init__(self, uri: str) -> None:
        self.uri, self.manifest = uri, verify_bundle(uri)
        self.tables = {facts.name: BundleTable(uri, facts) for facts in self.manifest.tables}
        program = torch.export.load(io.BytesIO(read_checked(uri, self.manifest.dense)))
        self._dense = program.module()

    @torch.no_grad()
    def scores(self, features: Jagged) -> Tensor:
        """Return (B,) probabilities.

        Args:
            features: ids of the manifest's features, in its order.

        Raises:
            DataError: as `check_features`.
        """
        manifest = self.manifest
        num_rows = check_features(features, manifest.features, self.uri)
        if not num_rows:
            return torch.zeros(0)
        lengths = features.lengths.long().view(len(features.keys), num_rows)
        values = features.values.split(lengths.sum(1).tolist())
        pooled = [
            _pool(self.tables[feature.table], ids, each, manifest)
            for feature, ids, each in zip(manifest.features, values, lengths, strict=True)
        ]
        return torch.sigmoid(self._dense(torch.cat(pooled, dim=1)))

    def semantic_ids(self, item_ids: pa.Array) -> SemanticIds | None:
        """Return the map in the order of (n,) items; None where the model reads no codes.

        Raises:
            DataError: an item has no codes.
        """
        facts = self.manifest.semantic_ids
        if facts is None:
            return None
        return SemanticIds.load(join(self.uri, facts.file), item_ids)


def _pool(table: BundleTable, ids: Tensor, lengths: Tensor, manifest: Manifest) -> Tensor:
    pooled = torch.zeros(len(lengths), manifest.dim)
    pooled.index_add_(0, torch.repeat_interleave(lengths), table.rows(ids))
    return pooled / lengths.clamp(min=1).unsqueeze(1) if manifest.pooling == "mean" else pooled
