"""Every figure goes to `metrics.jsonl` first and to W&B second; wandb is imported in this folder only, and lazily."""

from lossopt.tracking.offline import OfflineRun, read_offline_run
from lossopt.tracking.record import METRICS_FILE, JsonLinesLogger, read_metrics
from lossopt.tracking.view import Gallery, Neighbour, finish, log_galleries, log_table, loggers

__all__ = [
    "METRICS_FILE",
    "Gallery",
    "JsonLinesLogger",
    "Neighbour",
    "OfflineRun",
    "finish",
    "log_galleries",
    "log_table",
    "loggers",
    "read_metrics",
    "read_offline_run",
]
