"""Models by constructors with arguments, of timm and of Hugging Face; weights in folders. Nothing is downloaded."""

import json
import os
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.distributed.checkpoint as dcp
from refusals import refused
from torch import nn

import landscape as ls
from landscape.callables import resolve_call
from landscape.errors import InputError
from landscape.networks import checkpoints, models

pytestmark = pytest.mark.filterwarnings("ignore")  # of other libraries while they load

TOKENS = torch.randint(0, 12, (6, 5), generator=torch.Generator().manual_seed(0))
DOCUMENTS = [{"input_ids": tokens} for tokens in TOKENS]
MINE = """
import torch
from torch import nn

def net(width, n_classes, bias=True):
    return nn.Sequential(nn.Linear(3, width), nn.Linear(width, n_classes, bias=bias))

def data(n):
    return torch.randn(n, 3, generator=torch.Generator().manual_seed(0)), torch.arange(n) % 2

def scaled(by):
    return lambda z, y: by * torch.nn.functional.cross_entropy(z, y, reduction="none")
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "made_by_name", raising=False)
    (tmp_path / "made_by_name.py").write_text(MINE)
    return tmp_path


def language_model(transformers):
    config = transformers.LlamaConfig(
        vocab_size=12, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=16, bos_token_id=1, eos_token_id=2, use_cache=False,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.random.manual_seed(0)
        return transformers.LlamaForCausalLM(config).eval()


def loss_of(model):
    logits = model(input_ids=TOKENS).logits[:, :-1]
    return nn.functional.cross_entropy(logits.flatten(0, 1), TOKENS[:, 1:].flatten()).item()


def test_a_constructor_data_and_a_loss_take_plain_arguments(here):
    objective = ls.load_objective(
        model="made_by_name:net(width=4, bias=False)", dataset="made_by_name:data(9)", loss="made_by_name:scaled(2)"
    )
    assert objective.layout.shapes == ((4, 3), (4,), (2, 4))
    assert len(objective.samples) == 9
    plain = ls.make_objective(objective.model.requires_grad_(True), objective.samples)
    assert objective.evaluation.loss[0] == pytest.approx(2 * plain.evaluation.loss[0])
    assert resolve_call("math:hypot(3, 4)", "model")[1:] == ((3, 4), {})
    assert resolve_call("builtins:dict(a={'b': (1, None)})", "model")[2] == {"a": {"b": (1, None)}}


@pytest.mark.parametrize(
    "text", ["__import__('os').system('true')", "width=4", "**{}", "x.y)", "[i for i in ()])", "4) + (5)", "(" * 500]
)
def test_what_is_no_plain_value_is_refused_and_not_run(here, text):
    with refused(InputError, "values"):
        resolve_call(f"made_by_name:net({text}", "model")


def test_timm_makes_a_model_for_the_classes_and_downloads_nothing(monkeypatch, without):
    asked = {}
    library = SimpleNamespace(create_model=lambda name, **options: asked.update(options, name=name) or nn.Linear(3, 2))
    monkeypatch.setitem(sys.modules, "timm", library)
    models.build("timm:resnet18(in_chans=1)", 7)
    assert asked == {"name": "resnet18", "num_classes": 7, "in_chans": 1, "pretrained": False}
    without("timm")
    with refused(InputError, "timm"):
        models.build("timm:resnet18", 7)


def test_timm_itself():
    timm = pytest.importorskip(
        "timm", reason="timm or the torchvision that it needs is not installed", exc_type=ImportError
    )
    found = models.build("timm:resnet18", 7)
    assert type(found) is type(timm.create_model("resnet18"))
    assert found.fc.out_features == 7


@pytest.mark.parametrize("shards", [False, True])
def test_a_folder_of_hugging_face_is_a_checkpoint_with_its_model(here, shards):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    model = language_model(transformers)
    model.save_pretrained("folder", max_shard_size="1KB" if shards else "1GB")
    assert os.path.isfile("folder/model.safetensors.index.json") == shards
    objective = ls.load_objective("folder", dataset=DOCUMENTS, task="next-token")
    assert objective.evaluation.loss[0] == pytest.approx(loss_of(model), rel=1e-5)
    state = checkpoints.read("folder").state
    assert all(torch.equal(t, state[name]) for name, t in model.named_parameters() if name in state)
    assert set(state) <= set(model.state_dict())
    again = ls.load_objective("folder", model="hf:folder", dataset=DOCUMENTS, task="next-token")
    assert again.evaluation.loss == objective.evaluation.loss


@pytest.mark.parametrize(
    "places", ["nothing", {}, {"a": "../whole.safetensors"}, {"a": "absent.safetensors"}, {"a": 3}]
)
def test_an_index_that_leads_out_of_its_folder_is_refused(here, places):
    os.mkdir("folder")
    with open("folder/model.safetensors.index.json", "w") as file:
        json.dump({"weight_map": places}, file)
    with pytest.raises(InputError, match=r"weight_map|not a file in its folder"):
        checkpoints.read("folder")


def test_a_configuration_that_asks_for_code_or_another_class_is_refused(here):
    pytest.importorskip("transformers", reason="transformers is not installed")
    os.mkdir("folder")
    for architectures in (["Trainer"], ["Absent"], ["A", "B"], None):
        with open("folder/config.json", "w") as file:
            json.dump({"architectures": architectures, "auto_map": {"AutoModel": "evil.Model"}}, file)
        with pytest.raises(InputError, match=r"code in the folder is not run|not name exactly one architecture"):
            ls.load_objective("folder", dataset=DOCUMENTS, task="next-token")


def test_an_adapter_of_an_adapter_is_refused(here):
    os.mkdir("adapter")
    with open("adapter/adapter_config.json", "w") as file:
        json.dump({"base_model_name_or_path": "adapter"}, file)
    with refused(InputError, "adapter", "adapter/adapter_config.json"):
        ls.load_objective("adapter", dataset=DOCUMENTS, task="next-token")


def test_an_adapter_is_read_with_its_base_and_its_own_parameters_vary(here):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    peft = pytest.importorskip("peft", reason="peft is not installed")
    language_model(transformers).save_pretrained("base")
    options = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(transformers.LlamaForCausalLM.from_pretrained("base"), options).eval()
    adapted.peft_config["default"].base_model_name_or_path = os.path.abspath("base")
    adapted.save_pretrained("adapter")
    objective = ls.load_objective("adapter", dataset=DOCUMENTS, task="next-token")
    assert objective.evaluation.loss[0] == pytest.approx(loss_of(adapted), rel=1e-5)
    assert objective.layout.size == 32  # rank 2 of a map from 8 to 8
    assert all("lora_" in name for name in objective.layout.names)
    os.rename("base", "gone")
    with refused(InputError, "folder"):
        ls.load_objective("adapter", dataset=DOCUMENTS, task="next-token")


def test_a_distributed_checkpoint_is_read_where_it_is_trusted(here):
    net = nn.Linear(3, 2)
    dcp.save({"model": net.state_dict(), "epoch": 3}, checkpoint_id="shards", no_dist=True)
    with pytest.raises(InputError, match="index is a pickle: if you trust its author"):
        checkpoints.read("shards")
    state = checkpoints.read("shards", trust_pickle=True).state
    assert set(state) == {"weight", "bias"}
    assert torch.equal(state["weight"], net.weight)


def test_a_checkpoint_of_lightning_is_read_without_its_module(here):
    """As `Trainer.save_checkpoint` writes it: weights under the module's attribute, hyper-parameters beside them."""
    model = models.build("made_by_name:net(width=4)", 2)
    state = {f"model.{name}": t for name, t in model.state_dict().items()}
    content = {"epoch": 1, "global_step": 7, "pytorch-lightning_version": "2.6", "state_dict": state}
    torch.save(content | {"hyper_parameters": {"width": 4}, "optimizer_states": []}, "lit.ckpt")
    objective = ls.load_objective("lit.ckpt", model="made_by_name:net(width=4)", dataset="made_by_name:data(9)")
    assert torch.equal(objective.model[0].weight, model[0].weight)
    assert objective.source["checkpoint_found"] == {"epoch": 1, "global_step": 7}
