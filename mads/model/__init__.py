"""The LLaMA-family decoder, built from mads.tensor's layers."""

from mads.model.decoder import Decoder
from mads.model.shape import check_model_config, flops_per_token, parameter_count

__all__ = ["Decoder", "check_model_config", "flops_per_token", "parameter_count"]
