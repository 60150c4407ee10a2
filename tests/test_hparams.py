import doctest

from tensorboard.plugins.hparams import metadata

from fedgram import FedIT
from fedgram.runs import hparams


def test_the_examples_of_the_docstrings_hold():
    result = doctest.testmod(hparams)
    assert result.attempted
    assert not result.failed


def test_a_method_of_ones_own_brings_its_options():
    class Mine(FedIT):
        def __init__(self, *common, warmth=0.5, is_kind=True, **more):
            super().__init__(*common, **more)

    (value,) = hparams.table({"method": "Mine"}, {}).value
    experiment = metadata.parse_experiment_plugin_data(value.metadata.plugin_data.content)
    types = {info.name: info.type for info in experiment.hparam_infos}
    assert types["method.warmth"] == types["method.rank"]
    assert types["method.is_kind"] not in (types["method.warmth"], types["method"])
    assert not {"method.common", "method.more"} & types.keys()
