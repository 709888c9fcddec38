"""Configuration: structured configs, composition with Hydra, cross-field validation, and the factory."""
