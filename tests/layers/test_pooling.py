import torch

from trec_semid.layers.pooling import PickPieces, Piece


def test_pieces_stand_side_by_side_or_are_added():
    x = torch.arange(12.0).view(1, 12)  # six features, two wide
    pick = PickPieces([Piece(5, 6, False), Piece(0, 2, False), Piece(2, 5, True)], 2)
    assert pick(x).tolist() == [[10, 11, 0, 1, 2, 3, 4 + 6 + 8, 5 + 7 + 9]]
    assert pick.out_dim == 8
