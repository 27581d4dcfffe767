"""A Hugging Face causal language model that reads vectors in place of words.

Legend: B users, S tokens, D width of items, H width of the language model.
"""

import importlib
from types import ModuleType
from typing import Any, final

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat
from torch import Tensor, nn

from trec_semid.core.config import Config
from trec_semid.core.errors import ConfigError, StackError
from trec_semid.models.hymirec.refined_half import Backbone


class CausalLmConfig(Config):
    """Which language model, and how it is trained."""

    path: str
    """Folder with the model's `config.json`, or its name on the Hugging Face Hub."""
    pretrained: bool = True
    """Whether its weights are read there, too; otherwise they are drawn."""
    lora_rank: NonNegativeInt = 0
    """Rank of what is added to each of its linear maps, which then stay as they are; 0 trains all of it."""
    lora_alpha: PositiveFloat = 16.0
    """What is added is multiplied by alpha / rank."""
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    """Of what goes into the additions."""
    checkpoints_gradients: bool = False
    """Whether layers are computed again in backward, which saves memory and costs time."""


@final
class CausalLm(Backbone):
    """W_out LM(W_in x + b_in) + b_out: the layers of a language model between two linear adapters.

    Its table of words is left out: nothing reads it. Source: RED-Rec, 2025, where an LLM reads items.
    """

    def __init__(self, dim: int, length: int, config: CausalLmConfig) -> None:
        """Read or draw the model.

        Args:
            dim: D.
            length: of the longest sequence.
            config: which model.

        Raises:
            StackError: the extra `lm` is not installed.
            ConfigError: see `expect_readable`.
        """
        super().__init__()
        expect_readable(config, length)
        model = _model_of(config)
        hidden = int(model.config.hidden_size)
        # A stand-in of one row: words are never read, and weights without a gradient would hold up all ranks.
        model.set_input_embeddings(nn.Embedding(1, hidden).requires_grad_(requires_grad=False))
        if config.checkpoints_gradients:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self.model: nn.Module = _with_lora(model, config) if config.lora_rank else model
        self.into, self.out = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor, mask: Tensor, first_position: int) -> Tensor:
        """Return (B, S, D)."""
        inputs = self.into(x)
        positions = torch.arange(first_position, first_position + x.shape[1], device=x.device)
        # Added to scores, as every way of computing attention takes it.
        hidden = torch.zeros(mask.shape, dtype=inputs.dtype, device=x.device)
        hidden = hidden.masked_fill(~mask, torch.finfo(inputs.dtype).min)
        said: Any = self.model(
            inputs_embeds=inputs,
            attention_mask=hidden,
            position_ids=positions.expand(x.shape[0], -1),  # `len` would fix it in an export
            use_cache=False,
        )
        return self.out(said.last_hidden_state)


def expect_readable(config: CausalLmConfig, length: int) -> None:
    """Refuse a language model that is not there or reads no sequences of this length; reads its config alone.

    Raises:
        StackError: the extra `lm` is not installed.
        ConfigError: says what to name instead.
    """
    if config.lora_rank:
        _module_of_extra("peft")
    longest = getattr(_config_of(config), "max_position_embeddings", None)
    if longest is not None and longest < length:
        raise ConfigError(
            f"model.lm.path: {config.path} reads {longest} tokens at most, and there are {length}: lower "
            "model.recent or model.coarse_interests, or name another model."
        )


def _config_of(config: CausalLmConfig) -> Any:
    try:
        return _module_of_extra("transformers").AutoConfig.from_pretrained(config.path)
    except (OSError, ValueError) as error:
        raise _no_model(config, error) from error


def _model_of(config: CausalLmConfig) -> Any:
    models = _module_of_extra("transformers").AutoModel
    if not config.pretrained:
        return models.from_config(_config_of(config))
    try:
        return models.from_pretrained(config.path, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise _no_model(config, error) from error


def _no_model(config: CausalLmConfig, error: Exception) -> ConfigError:
    return ConfigError(
        f"model.lm.path: no model in '{config.path}': {str(error).splitlines()[0]} Name a folder with a "
        "config.json of transformers, and with weights unless model.lm.pretrained = false."
    )


def _with_lora(model: Any, config: CausalLmConfig) -> nn.Module:
    peft = _module_of_extra("peft")
    transposed = _module_of_extra("transformers.pytorch_utils").Conv1D  # the linear maps of GPT-2
    lora = peft.LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules="all-linear",
        fan_in_fan_out=any(isinstance(module, transposed) for module in model.modules()),
    )
    return peft.get_peft_model(model, lora)


def _module_of_extra(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise StackError(
            f"model.backbone = 'causal_lm' needs the package {name}: {error}. "
            'Remedy: pip install "trec-semid[lm]"'
        ) from error
