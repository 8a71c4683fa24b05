"""Market panels: one float32 frame by (datetime, instrument), features, labels, normalisation, and the batches cut from them."""

from .alphas import ALPHA158, alpha158
from .assemble import assemble
from .batches import DayBatches, RowBatches, WindowBatches, loader_order
from .features import forward_returns, price_windows, window_names
from .finite import check_features_finite, check_label
from .gather import Batch
from .index import PanelIndex
from .normalise import RobustZScore, cs_rank_norm, cs_zscore
from .panel import PanelDataset, Segment
from .sample import SP500_SECTORS, load_sp500_sample, sample_panel
from .simulate import SimulatedMarket, simulate_market
from .tables import panel_from_table, read_table
from .windows import ChosenWindows, GivenWindows, WindowDataset, Windows

__all__ = [
    "ALPHA158",
    "Batch",
    "ChosenWindows",
    "DayBatches",
    "GivenWindows",
    "PanelDataset",
    "PanelIndex",
    "RobustZScore",
    "RowBatches",
    "SP500_SECTORS",
    "Segment",
    "SimulatedMarket",
    "WindowBatches",
    "WindowDataset",
    "Windows",
    "alpha158",
    "assemble",
    "check_features_finite",
    "check_label",
    "cs_rank_norm",
    "cs_zscore",
    "forward_returns",
    "load_sp500_sample",
    "loader_order",
    "panel_from_table",
    "price_windows",
    "read_table",
    "sample_panel",
    "simulate_market",
    "window_names",
]
