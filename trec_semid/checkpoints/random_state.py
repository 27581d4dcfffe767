"""Random generators of this process as plain text: a resumed run draws what it would have drawn."""

import base64

import torch

RandomState = dict[str, str]


def capture_random_state() -> RandomState:
    """Return the state of torch's global generators: CPU, and this rank's GPU where there is one."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return {name: base64.b64encode(bytes(state.tolist())).decode() for name, state in states.items()}


def restore_random_state(states: RandomState) -> None:
    """Put back what `capture_random_state` returned."""
    torch.set_rng_state(_tensor(states["cpu"]))
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(_tensor(states["cuda"]))


def _tensor(text: str) -> torch.Tensor:
    return torch.tensor(list(base64.b64decode(text)), dtype=torch.uint8)
