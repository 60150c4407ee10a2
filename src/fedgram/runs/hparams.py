"""Settings and final metrics, as TensorBoard's HPARAMS tab takes them.

TensorBoard asks one run alone, whichever it finds first, what columns its table has. So every run names the options of
all methods, partitions and optimizers that there are, and not only of its own; where a run has no such setting, its
cell is empty. TensorBoard shows five columns until others are asked for, and can't sort a column of texts and numbers:
the cell of a setting that is None is empty, too.
"""

import inspect
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from fedgram.data import Partition
from fedgram.methods import Method
from fedgram.optim import ClientOptimizer

__all__ = ["end", "start", "table"]

_SHOWN = ("method", "method.rank", "optimizer.lr", "data.partition.rho", "trainer.seed")
"""What tells runs apart most often: TensorBoard takes the columns that are said to differ first."""
_FAMILIES: dict[str, type] = {"method": Method, "data.partition": Partition, "optimizer": ClientOptimizer}

Value = bool | float | str


def table(settings: Mapping[str, Any], metrics: Mapping[str, str]) -> Any:
    """Return the summary that says what columns the table has.

    Args:
        settings: the run's settings by dotted name.
        metrics: the tags of the scalars that are final metrics, with their names.
    """
    from tensorboard.plugins.hparams import api_pb2, metadata

    types = {bool: api_pb2.DATA_TYPE_BOOL, float: api_pb2.DATA_TYPE_FLOAT64, str: api_pb2.DATA_TYPE_STRING}
    known = dict(_options()) | {key: "" if value is None else _as_value(value) for key, value in settings.items()}
    experiment = api_pb2.Experiment(
        hparam_infos=[
            api_pb2.HParamInfo(name=key, type=types[_kind(value)], differs=key in _SHOWN)
            for key, value in known.items()
        ],
        metric_infos=[
            api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag), display_name=name) for tag, name in metrics.items()
        ],
    )
    return _summary(metadata.EXPERIMENT_TAG, experiment=experiment)


def start(settings: Mapping[str, Any]) -> Any:
    """Return the summary that holds a run's settings."""
    from tensorboard.plugins.hparams import metadata, plugin_data_pb2

    fields = {bool: "bool_value", float: "number_value", str: "string_value"}
    info = plugin_data_pb2.SessionStartInfo()
    for key, value in _plain(settings).items():
        setattr(info.hparams[key], fields[_kind(value)], value)
    return _summary(metadata.SESSION_START_INFO_TAG, session_start_info=info)


def end() -> Any:
    """Return the summary that says that a run is finished."""
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

    info = plugin_data_pb2.SessionEndInfo(status=api_pb2.STATUS_SUCCESS)
    return _summary(metadata.SESSION_END_INFO_TAG, session_end_info=info)


def _summary(tag: str, **content: Any) -> Any:
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import metadata, plugin_data_pb2

    about = metadata.create_summary_metadata(plugin_data_pb2.HParamsPluginData(**content))
    return Summary(value=[Summary.Value(tag=tag, metadata=about, tensor=metadata.NULL_TENSOR)])


def _plain(settings: Mapping[str, Any]) -> dict[str, Value]:
    """Return the settings that have a value, lists and the like as text.

    >>> _plain({"rank": 4, "layers": ["query", "value"], "clip": None, "rho": float("inf")})
    {'rank': 4, 'layers': '["query", "value"]', 'rho': 'inf'}
    """
    return {key: _as_value(value) for key, value in settings.items() if value is not None}


def _as_value(value: Any) -> Value:
    if isinstance(value, bool | str):
        return value
    if isinstance(value, int | float):
        return value if math.isfinite(value) else str(value)
    return json.dumps(value, default=str)


def _kind(value: Value) -> type:
    """Return bool, str or float, which whole numbers are as well."""
    return next((kind for kind in (bool, str) if isinstance(value, kind)), float)


def _options() -> Iterator[tuple[str, Value]]:
    """Return all options of the classes that a run is put together from, each with a value of its type."""
    for prefix, family in _FAMILIES.items():
        for kind in _descendants(family):
            for name, option in inspect.signature(kind).parameters.items():
                if option.kind not in (option.VAR_POSITIONAL, option.VAR_KEYWORD):
                    given = None if option.default is option.empty else option.default
                    yield f"{prefix}.{name}", "" if given is None else _as_value(given)


def _descendants(kind: type) -> list[type]:
    children: list[type] = kind.__subclasses__()
    return [kind, *(one for child in children for one in _descendants(child))]
