"""Shape checks at public edges."""

from torch import Tensor

from trec_semid.core.errors import ShapeError


def expect_shape(x: Tensor, shape: str, name: str, **sizes: int) -> None:
    """Check a tensor's shape against names, e.g. `expect_shape(scores, "B K", "scores", K=100)`.

    Args:
        x: the tensor, of any shape.
        shape: one name per dimension, separated by spaces; equal names must have equal sizes,
            a number must be met exactly.
        name: how the error calls the tensor.
        **sizes: sizes of names that are known already.

    Raises:
        ShapeError: the tensor has another shape.
    """
    names = shape.split()
    known = dict(sizes)
    fits = len(names) == x.dim()
    for dim_name, size in zip(names, x.shape, strict=False):
        expected = int(dim_name) if dim_name.isdigit() else known.setdefault(dim_name, size)
        fits = fits and expected == size
    if not fits:
        told = ", ".join(f"{key} = {size}" for key, size in sizes.items())
        wants = f"({', '.join(names)})" + (f" with {told}" if told else "")
        raise ShapeError(f"{name}: wrong shape (got {tuple(x.shape)}, expected {wants}).")
