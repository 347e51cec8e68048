"""Every setting of the commands, once: type, default, unit, help. Imports no torch, so that --help is instant."""

from segkit.config.checks import default_of
from segkit.config.command_line import parse_args
from segkit.config.data import DATA_RULES, LabelConfig, SourceConfig
from segkit.config.keywords import as_declared, from_keywords, takes_settings
from segkit.config.predict import EvaluateConfig, InferConfig, PredictConfig, ScoreConfig, TuneConfig
from segkit.config.recipes import RECIPES, read_recipe
from segkit.config.setting_types import import_words
from segkit.config.tools import CheckConfig, ConvertConfig, ExportConfig, FoldsConfig
from segkit.config.train import TrainConfig, implied_settings
from segkit.config.yaml_files import Setting, format_settings, read_settings, write_yaml

__all__ = [
    "DATA_RULES",
    "RECIPES",
    "CheckConfig",
    "ConvertConfig",
    "EvaluateConfig",
    "ExportConfig",
    "FoldsConfig",
    "InferConfig",
    "LabelConfig",
    "PredictConfig",
    "ScoreConfig",
    "Setting",
    "SourceConfig",
    "TrainConfig",
    "TuneConfig",
    "as_declared",
    "default_of",
    "format_settings",
    "from_keywords",
    "implied_settings",
    "import_words",
    "parse_args",
    "read_recipe",
    "read_settings",
    "takes_settings",
    "write_yaml",
]
