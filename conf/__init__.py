"""Hydra's configuration groups, one folder per concern. Installed as mads.conf, so that they travel inside the wheel."""
