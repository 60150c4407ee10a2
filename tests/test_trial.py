import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import families
from backbones import Ids, Rows, _trainer
from fedgram import FedIT, FLoRG
from fedgram.adapters import LoraAdapter, lora_start
from fedgram.data import TokenTable
from fedgram.distributed.collectives import Ranks
from fedgram.engine.trial import rows_to_try
from fedgram.errors import ConfigurationError
from fedgram.federation.setup import assemble, build
from fedgram.state import stack

TRAIN, ASKED = families.rows_of((3, 4) * 8), families.rows_of((1, 2, 7, 19, 33), seed=1)
pytestmark = pytest.mark.filterwarnings("ignore")


def made(family, folder, method=None, **settings):
    """Return a network of a family, as a run would have it, and its data."""
    model = families.save(family, folder / "model")
    config = json.loads((folder / "model" / "config.json").read_text())
    (folder / "model" / "config.json").write_text(json.dumps(config | settings))
    task, data = Ids(model), Rows(TRAIN, ASKED, 8)
    trainer, method = _trainer(folder), method or FedIT(rank=2)
    network = assemble(trainer.connect(data, method), task, data, method)
    return network, data


def table_of(*lengths):
    ends = np.cumsum([0, *lengths])
    return TokenTable(np.arange(ends[-1], dtype=np.int32), None, ends, np.zeros(len(lengths), np.int64))


def test_rows_of_all_lengths_are_tried_whatever_table_they_are_in():
    tables = [table_of(3, 3, 9), table_of(1, 40), table_of(5)]
    assert rows_to_try(tables, 3).lengths.tolist() == [1, 3, 40]
    assert rows_to_try(tables, 9).lengths.tolist() == [1, 3, 3, 5, 9, 40]
    tried = rows_to_try(tables, 2)
    assert tried.ids.tolist() == [0, *range(1, 41)]


@pytest.mark.parametrize("family", ["fnet", "nystromformer"])
def test_a_model_that_mixes_padding_in_runs_one_row_at_a_time_and_says_so(family, tmp_path, caplog):
    network, data = made(family, tmp_path, FedIT(rank=2, target_modules=families.TARGETS.get(family)))
    assert network.one_by_one
    assert not network.packs
    assert sum("computed one at a time" in record.message for record in caplog.records) == 1
    network.load_one(network.initial_state())
    seen = []
    network.task.loaded().register_forward_pre_hook(lambda _, __, given: seen.append(given), with_kwargs=True)
    network.run(data.split("test"), np.array([0, 4, -1]))
    assert [given["input_ids"].shape[0] for given in seen] == [1, 1, 1]


def test_rows_one_at_a_time_meet_their_own_client(tmp_path):
    network, data = made("fnet", tmp_path, FedIT(rank=2, target_modules=["intermediate.dense"]))
    table, state = data.split("train"), network.initial_state()
    states = [state.map(lambda tensor, c=c: tensor + c) for c in range(2)]
    rows = np.array([0, 3, 5, 2, -1, -1])
    network.load(stack(states))
    with torch.inference_mode():
        together, labels = network.run(table, rows)
        assert labels.tolist() == table.batch(rows, 0)["labels"].tolist()
        for client, own in enumerate(states):
            network.load_one(own)
            alone, _ = network.run(table, rows[3 * client : 3 * client + 3].clip(min=0))
            real = rows[3 * client : 3 * client + 3] >= 0
            found = together["logits"][3 * client : 3 * client + 3]
            torch.testing.assert_close(found[torch.from_numpy(real)], alone["logits"][torch.from_numpy(real)])


class StartsElsewhere(FedIT):
    """LoRA whose B starts at one, so that the first model is not the pretrained one."""

    def adapter(self, linear, generator):
        start = lora_start(linear, self.rank, generator)
        return LoraAdapter(linear, self.rank, self.scale, start | {"B": torch.ones_like(start["B"])})


def test_a_method_that_starts_elsewhere_says_so(tmp_path):
    with pytest.raises(ConfigurationError, match="should set keeps_start to False"):
        made("bert", tmp_path, StartsElsewhere(rank=2))
    told = type("StartsElsewhere", (StartsElsewhere,), {"keeps_start": False})
    assert not made("bert", tmp_path, told(rank=2))[0].one_by_one


def test_a_model_that_remembers_what_came_before_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match=r"asked for again.*original_full"):
        made("big_bird", tmp_path)
    network, _ = made("big_bird", tmp_path, attention_type="original_full")
    assert not network.one_by_one


def test_a_text_that_the_model_fails_on_is_named_by_its_length(tmp_path):
    with pytest.raises(ConfigurationError, match=r"fails on a text of 3 tokens .*other lengths"):
        made("canine", tmp_path)


def test_numbers_that_overflow_are_refused_before_training(tmp_path, monkeypatch):
    plain = families.save("bert", tmp_path / "model")
    task = Ids(plain, dtype="float16")
    configure = task.configure_for

    def with_large_head(*given):
        configure(*given)
        task.loaded().classifier.weight.data.fill_(6e4)

    monkeypatch.setattr(task, "configure_for", with_large_head)
    with pytest.raises(ConfigurationError, match=r"nan or inf .*too large for float16.*bfloat16"):
        build(_trainer(tmp_path).settings, Ranks(), task, Rows(TRAIN, ASKED, 8), FedIT(rank=2))


def test_adapters_that_change_the_model_before_training_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("fedgram.adapters.lora.LoraAdapter.forward", lambda self, x: 2 * self.base(x))
    with pytest.raises(ConfigurationError, match="adapters on query, value does not answer as without them"):
        made("bert", tmp_path)


def test_a_start_that_is_to_change_the_model_may(tmp_path):
    network, _ = made("bert", tmp_path, FLoRG(rank=2, preserve_start=False))
    assert network.packs
    assert not network.one_by_one


def test_a_model_that_finds_padding_by_itself_is_given_a_mask(tmp_path):
    network, _ = made("xlm", tmp_path, pad_index=families.EOS)
    assert network.masks_all
    network, _ = made("bert", tmp_path)
    assert not network.masks_all


def test_windows_that_training_does_not_feel_are_heeded(tmp_path):
    network, data = made("mistral", tmp_path)
    assert network.packs
    expected = families.plain_logits(str(tmp_path / "model"), ASKED)
    network.load_one(network.initial_state())
    with torch.inference_mode():
        found = network.run(data.split("test"), np.arange(len(ASKED)))[0]["logits"]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize(
    ("family", "reason"),
    [("gpt_oss", "scaled dot products"), ("doge", "its layers fail without it"), ("deberta-v2", "scaled dot products")],
)
def test_the_reason_for_padding_is_given(family, reason, tmp_path, caplog):
    caplog.set_level("INFO", "fedgram.federation.setup")
    network, _ = made(family, tmp_path)
    assert not network.packs
    (notice,) = (record.message for record in caplog.records if "are padded" in record.message)
    assert reason in notice
    assert {module.config._attn_implementation for module in network.task.loaded().modules()
            if hasattr(module, "config")} <= {"sdpa", "eager"}  # fmt: skip


def test_a_library_that_a_model_lacks_is_a_refusal(monkeypatch, tmp_path):
    task = Ids(families.save("bert", tmp_path))

    def lacking(*_):
        raise ImportError("LayoutLMv2Model requires the detectron2 library. See a long text")

    monkeypatch.setattr("fedgram.models.base.load_network", lacking)
    with pytest.raises(ConfigurationError, match=r"requires the detectron2 library; install it$"):
        task.configure_for(
            task.load_tokenizer(), SimpleNamespace(label_names="abc", num_labels=3, metrics=("accuracy",)), 0
        )


def test_a_hook_is_left_nowhere_when_padding_stays(tmp_path):
    network, _ = made("doge", tmp_path)
    layers = next(m for m in network.task.loaded().modules() if isinstance(m, nn.ModuleList) and len(m) == 2)
    assert not any(layer._forward_pre_hooks or layer._forward_hooks for layer in layers)
