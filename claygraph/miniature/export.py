"""Step `export`: write the family in its real file formats, fp16, each file beside the old one and then renamed."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import torch
from safetensors.torch import save_file
from torch import nn

from claygraph.miniature import family, names
from claygraph.miniature.classifier import CLASSES, Classifier
from claygraph.miniature.classifier import SIDE as CLASSIFIER_SIDE
from claygraph.miniature.image_encoder import PROCESSOR, load_image_encoder
from claygraph.miniature.ip_adapter import ip_tensors, load_ip_adapter
from claygraph.miniature.lora import RANKS, load_lora, lora_tensors
from claygraph.miniature.networks import BOS, EOS, SCHEDULER, VOCABULARY
from claygraph.miniature.sample_photos import write_photos
from claygraph.miniature.tagger_networks import SIDE, make_tagger
from claygraph.miniature.train_taggers import NAMES, TAGS, selected_tags
from claygraph.miniature.training import load_average

Tensors = dict[str, torch.Tensor]


def export(work: Path, weights: Path) -> None:
    """Export every part that has been trained; files of other parts stay as they are."""
    trained = {file.stem for file in (work / "checkpoints").glob("*.safetensors")}
    if "base" in trained:
        _checkpoint(work, weights / "checkpoint/clay_mini.safetensors")
        _controlnet(work, weights / "controlnet/canny")
        _ip_adapter(work, weights / "ip_adapter")
    for name in RANKS:
        if f"lora_{name}" in trained:
            _lora(work, name, weights / f"lora/{name}.safetensors")
    for name in NAMES:
        if f"tagger_{name}" in trained:
            _tagger(work, name, weights / "tagger" / name)
    if "classifier" in trained:
        _classifier(work, weights / "classifier")
    write_photos(work, weights / "photos")
    print(f"export: {sum(f.stat().st_size for f in weights.rglob('*') if f.is_file()) / 1e6:.1f} MB")


def checkpoint_tensors(base: family.Base, vae: nn.Module) -> Tensors:
    """The single file's tensors: UNet, both text encoders, autoencoder, and the v-prediction marker."""
    vocabulary = base.text.vocabulary
    first, second = base.text.first.state_dict(), base.text.second.state_dict()
    table = "embeddings.token_embedding.weight"
    for state, key in ((first, table), (second, f"text_model.{table}")):
        state[key] = vocabulary.expand(state[key])
    levels = len(vae.config.block_out_channels)  # type: ignore[union-attr, arg-type]
    parts: dict[str, Tensors] = {
        "model.diffusion_model.": {names.unet_name(n): t for n, t in base.unet.state_dict().items()},
        "conditioner.embedders.0.transformer.text_model.": first,
        "conditioner.embedders.1.model.": names.open_clip_tensors(second),
        "first_stage_model.": names.vae_tensors(vae.state_dict(), levels),
    }
    tensors = {prefix + n: t for prefix, part in parts.items() for n, t in part.items()}
    return tensors | {"v_pred": torch.zeros(0)}


def component_configs(base: family.Base, vae: Any) -> dict[str, Any]:
    """Full configs of all components, as diffusers and transformers write them."""
    texts = {"text_encoder": base.text.first, "text_encoder_2": base.text.second}
    real = {"vocab_size": VOCABULARY, "bos_token_id": BOS, "eos_token_id": EOS}
    return {
        "unet": dict(base.unet.config),
        "vae": dict(vae.config),
        **{n: e.config.to_dict() | real for n, e in texts.items()},
        "scheduler": {"_class_name": "EulerDiscreteScheduler", **SCHEDULER},
    }


def _checkpoint(work: Path, file: Path) -> None:
    base, vae = family.load_base(work), family.final_vae(work)
    configs = json.dumps(component_configs(base, vae), default=str)
    _save(checkpoint_tensors(base, vae), file, {"diffusers_config": configs, "format": "pt", "license": "CC-BY-SA-4.0"})


def _lora(work: Path, name: str, file: Path) -> None:
    base = family.load_base(work)
    load_lora(work, base, name)
    _save(lora_tensors(base), file, {"ss_network_module": "networks.lora", "license": "CC-BY-SA-4.0"})


def _controlnet(work: Path, folder: Path) -> None:
    controlnet = family.load_controlnet(work, family.load_base(work))
    _save(controlnet.state_dict(), folder / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    _write(folder / "config.json", controlnet.to_json_string())


def _ip_adapter(work: Path, folder: Path) -> None:
    base, encoder = family.load_base(work), load_image_encoder(work)
    load_ip_adapter(work, base)
    _save(ip_tensors(base.unet), folder / "ip-adapter_mini.safetensors", {"format": "pt"})
    _save(encoder.state_dict(), folder / "image_encoder/model.safetensors", {"format": "pt"})
    config = encoder.config.to_dict() | {"architectures": ["CLIPVisionModelWithProjection"]}
    _write(folder / "image_encoder/config.json", json.dumps(config, indent=2, default=str))
    _write(folder / "image_encoder/preprocessor_config.json", json.dumps(PROCESSOR, indent=2))


def _tagger(work: Path, name: str, folder: Path) -> None:
    tagger = make_tagger(name, len(TAGS))
    if (checkpoint := work / f"checkpoints/tagger_{name}.safetensors").exists():
        load_average(checkpoint, tagger)
    folder.mkdir(parents=True, exist_ok=True)
    write_onnx(tagger.eval(), folder / "model.onnx", SIDE)
    rows = [("tag_id", "name", "category", "count"), *selected_tags()]
    part = folder / "selected_tags.csv.part"
    with part.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
    part.replace(folder / "selected_tags.csv")


def _classifier(work: Path, folder: Path) -> None:
    classifier = Classifier()
    load_average(work / "checkpoints/classifier.safetensors", classifier)
    folder.mkdir(parents=True, exist_ok=True)
    write_onnx(classifier.eval(), folder / "model.onnx", CLASSIFIER_SIDE)
    _write(folder / "classes.json", json.dumps(CLASSES))


def write_onnx(network: nn.Module, file: Path, side: int) -> None:
    """Export a network of [N,side,side,3] pictures with a dynamic batch; large matrices are in half precision."""
    part = file.with_suffix(".part")
    torch.onnx.export(
        network,
        (torch.zeros(2, side, side, 3),),
        str(part),
        input_names=["input"],
        output_names=["output"],
        dynamic_axes={"input": {0: "N"}, "output": {0: "N"}},
        dynamo=False,
    )
    model = onnx.load(str(part))
    _store_half(model.graph)
    onnx.checker.check_model(model)
    onnx.save(model, str(part))
    part.replace(file)


def _store_half(graph: Any) -> None:
    casts = []
    for weight in graph.initializer:
        values = onnx.numpy_helper.to_array(weight)
        if values.dtype == "float32" and values.size > 2000:
            name = weight.name
            weight.CopyFrom(onnx.numpy_helper.from_array(values.astype("float16"), name + "_half"))
            casts.append(onnx.helper.make_node("Cast", [name + "_half"], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def _save(tensors: Mapping[str, torch.Tensor], file: Path, metadata: dict[str, str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    save_file({n: t.detach().half().contiguous() for n, t in tensors.items()}, part, metadata)
    part.chmod(0o644)
    part.replace(file)


def _write(file: Path, text: str) -> None:
    part = file.with_suffix(".part")
    part.write_text(text + "\n", encoding="utf-8")
    part.replace(file)
