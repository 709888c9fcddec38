"""Registers the structured configs with Hydra, so that every file below conf/ is typed by its class."""

from __future__ import annotations

from hydra.core.config_store import ConfigStore

from mads.config import schema

VARIANTS = {
    "data": {
        "demo": schema.DemoDataConfig,
        "jsonl": schema.JsonlDataConfig,
        "files": schema.FilesDataConfig,
        "slimpajama_labeled": schema.SlimpajamaLabeledDataConfig,
        "megatron": schema.MegatronDataConfig,
    },
    "selection": {
        "random": schema.RandomSelectionConfig,
        "stratified": schema.StratifiedSelectionConfig,
        "column": schema.ColumnSelectionConfig,
        "mix": schema.MixSelectionConfig,
        "paper": schema.PaperSelectionConfig,
        "mads": schema.MadsSelectionConfig,
        "odm": schema.OdmSelectionConfig,
        "ado": schema.AdoSelectionConfig,
        "aioli": schema.AioliSelectionConfig,
    },
    "reward": {
        "auto": schema.AutoRewardConfig,
        "finite_difference": schema.FiniteDifferenceRewardConfig,
        "ghost": schema.GhostRewardConfig,
        "displacement": schema.DisplacementRewardConfig,
        "group": schema.GroupRewardConfig,
        "blend": schema.BlendRewardConfig,
    },
    "schedule": {
        "constant": schema.ConstantScheduleConfig,
        "cosine": schema.CosineScheduleConfig,
        "wsd": schema.WSDScheduleConfig,
    },
}


def register() -> None:
    """Idempotent: Hydra's store is keyed by name."""
    store = ConfigStore.instance()
    store.store(name="run_schema", node=schema.RunConfig, provider="mads")
    for group, variants in VARIANTS.items():
        for name, node in variants.items():
            store.store(group=group, name=f"{name}_schema", node=node, provider="mads")
