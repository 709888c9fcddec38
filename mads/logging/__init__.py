"""What a run writes about itself: metrics and decisions, environment, progress lines, W&B. Rank 0 only."""

from mads.logging.environment import environment, write_environment
from mads.logging.metrics import MetricsWriter, read_lines, truncate_after
from mads.logging.progress import Progress
from mads.logging.wandb import WandbSink

__all__ = ["MetricsWriter", "Progress", "WandbSink", "environment", "read_lines", "truncate_after", "write_environment"]
