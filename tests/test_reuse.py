"""Parts taken back from the bundled weights are exported again as the same files."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from claygraph.miniature import WEIGHTS, export, train
from claygraph.miniature.image_encoder import normalise, patches
from claygraph.miniature.ip_adapter import set_blocks
from claygraph.miniature.networks import added
from claygraph.miniature.reuse import reuse
from claygraph.miniature.train_base import load_joint

FILES = (
    "controlnet/canny/diffusion_pytorch_model.safetensors",
    "ip_adapter/ip-adapter_mini.safetensors",
    "ip_adapter/image_encoder/model.safetensors",
    "lora/clay.safetensors",
    "lora/toy.safetensors",
)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    (folder / "captions.json").write_text(json.dumps(["a red apple on a table"]))
    for part in ("vae", "image_encoder", "base", "lora_clay", "lora_toy"):
        reuse(folder, WEIGHTS, part)
    return folder


def test_the_same_files_come_of_it(work: Path, tmp_path: Path) -> None:
    export._controlnet(work, tmp_path / "controlnet/canny")
    export._ip_adapter(work, tmp_path / "ip_adapter")
    for name in ("clay", "toy"):
        export._lora(work, name, tmp_path / f"lora/{name}.safetensors")
    for file in FILES:
        ours, shipped = load_file(tmp_path / file), load_file(WEIGHTS / file)
        assert ours.keys() == shipped.keys()
        assert all(torch.equal(ours[name], shipped[name]) for name in ours), file


def test_text_tables_hold_the_words_that_are_known(work: Path) -> None:
    text, stored = load_joint(work).base.text, load_file(WEIGHTS / "checkpoint/clay_mini.safetensors")
    table = stored["conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.weight"].float()
    assert torch.equal(text.first.get_input_embeddings().weight, table[text.vocabulary.ids])


def test_style_and_composition_look_where_they_are(work: Path) -> None:
    joint = load_joint(work)
    photo = Image.open(WEIGHTS / "photos/coffee.jpg").convert("RGB").resize((128, 128))
    pixels = torch.from_numpy(np.asarray(photo).copy()).permute(2, 0, 1)[None].float() / 255
    x = torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    set_blocks(joint.base.unet, (3, 6))
    with torch.no_grad():
        hidden, pooled = joint.base.text(["photo"])
        conditions = added(pooled, x) | {"image_embeds": [patches(joint.encoder, normalise(pixels))[:, None]]}
        joint.base.unet(x, 999, hidden, added_cond_kwargs=conditions)
        assert joint.gaze.loss(32, 32) < 0.6 * math.log(65)  # even attention over 65 tokens has log(65)


def test_what_is_reused_waits_for_the_words_of_the_fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def words(work: Path, *_: object) -> None:
        (work / "captions.json").write_text(json.dumps(["a red apple on a table"]))

    monkeypatch.setitem(train.PARTS, "fetch", words)  # the download, but for its words
    assert train.main(["fetch", "--reuse", "base", "--work", str(tmp_path)]) == 0
    assert (tmp_path / "checkpoints/base.safetensors").exists()
