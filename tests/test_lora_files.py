"""What is known of a LoRA before any weight is loaded: its kind, its family, the layers it fits; and block weights."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from claygraph.diffusion import lora
from claygraph.diffusion.checkpoint import load_unet
from claygraph.diffusion.describe import describe
from claygraph.diffusion.lora_blocks import block_weights, by_block, summed
from claygraph.diffusion.lora_files import held
from claygraph.diffusion.lora_fit import fit, layers_of
from claygraph.diffusion.lora_names import BLOCKS, block_of, diffusers_name, ldm_name
from claygraph.errors import SettingError, WeightsError
from claygraph.memory import Memory
from claygraph.stages.lora import LoraStack
from claygraph.values import Checkpoint, Lora, Model
from tests import tiny, tiny_adapters
from tests.loras import error, everywhere, outputs, pair_names, product, weights

MEMORY = Memory("cpu", "float32")
PARTS = ("unet", "text_encoder", "text_encoder_2")
PAIR = (".lora_down.weight", ".lora_up.weight")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return describe(weights(tiny.checkpoint(tmp_path_factory.mktemp("model") / "model.safetensors")))


@pytest.fixture(scope="module")
def unet(checkpoint: Checkpoint) -> Any:
    return load_unet(checkpoint, MEMORY).double()


def written(path: Path, *names: str) -> Path:
    save_file({name: torch.zeros(4, 4) for name in names}, path)
    return path


def stack(path: Path, **settings: Any) -> LoraStack:
    return LoraStack.of(clay={"path": str(path), **settings})


FOREIGN = {
    "Flux": ["lora_unet_double_blocks_0_img_attn_proj"],
    "Flux, ": ["transformer.single_transformer_blocks.0.attn.to_q"],
    "Stable Diffusion 3": ["transformer.transformer_blocks.0.attn.add_q_proj"],
    "Stable Diffusion 3,": ["lora_unet_joint_blocks_0_context_block_attn_qkv", "lora_te1_text_model_x"],
    "a transformer model": ["transformer.transformer_blocks.0.attn.to_q"],
    "a transformer model such as Wan": ["diffusion_model.blocks.0.self_attn.q"],
    "Stable Cascade": ["lora_prior_unet_down_blocks_0_1_attention"],
}


@pytest.mark.parametrize(("family", "layers"), FOREIGN.items())
def test_another_architecture_is_named_while_planning(family: str, layers: list[str], tmp_path: Path) -> None:
    path = written(tmp_path / "x.safetensors", *(layer + end for layer in layers for end in PAIR))
    with pytest.raises(WeightsError, match=rf"lora 'x.safetensors' was made for {family.strip(', ')}"):
        stack(path).files()


OTHERS = {
    "a checkpoint \\(Stable Diffusion 1.x\\)": ["model.diffusion_model.input_blocks.1.1.attn2.to_k.weight"],
    "a VAE": ["decoder.conv_in.weight"],
    "an image encoder": ["vision_model.embeddings.class_embedding"],
    "a textual inversion": ["clip_l", "clip_g"],
    "none we know": ["nothing"],
}


@pytest.mark.parametrize(("kind", "names"), OTHERS.items())
def test_a_file_of_another_kind_is_named(kind: str, names: list[str], tmp_path: Path) -> None:
    save_file({name: torch.zeros(4, 768) for name in names}, tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match=f"'x.safetensors' is no LoRA: it looks like {kind};"):
        stack(tmp_path / "x.safetensors").files()


def test_whole_models_are_named(checkpoint: Checkpoint, tmp_path: Path) -> None:
    def refused(path: Path) -> str:
        with pytest.raises(WeightsError) as caught:
            stack(path).files()
        return str(caught.value)

    assert "a checkpoint (SDXL)" in refused(Path(checkpoint.weights.path))
    network = tiny_adapters.controlnet(tmp_path / "canny") / "diffusion_pytorch_model.safetensors"
    assert "a ControlNet" in refused(network)
    assert "an IP-Adapter" in refused(tiny_adapters.ip_adapter(tmp_path / "adapter.safetensors"))
    assert "is a Control-LoRA" in refused(written(tmp_path / "x.safetensors", "lora_controlnet", "input_blocks.0.up"))


KINDS = {"oft_blocks": "OFT", "a2.weight": "GLoRA", "reshape_weight": "weights of another shape"}


@pytest.mark.parametrize(("name", "kind"), KINDS.items())
def test_kinds_that_cannot_be_applied_are_named(name: str, kind: str, tmp_path: Path) -> None:
    path = written(tmp_path / "x.safetensors", f"lora_unet_mid_block_attentions_0_proj_in.{name}")
    with pytest.raises(WeightsError, match=f"'x.safetensors' holds {kind}"):
        stack(path).files()


@pytest.mark.parametrize("layout", ["sgm", "diffusers", "peft"])
def test_layers_are_counted_before_anything_is_loaded(layout: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tiny.lora(tmp_path / "x.safetensors", layout=layout, conv=True)
    extra = {f"{stem}{PAIR[0]}": torch.zeros(4, 8) for stem in ("lora_te1_nowhere", "bundle_emb.clay")}
    save_file(load_file(path) | extra, path)
    model = stack(path).run(Model(checkpoint))
    counts = {part: sum(tiny.targeted(name, conv=True) for name in tiny.shapes()[part]) for part in PARTS}
    left = {"unet": 1, "text_encoder": 1, "text_encoder_2": 0}
    assert model.loras[0].layers == tuple((part, counts[part], left[part]) for part in PARTS)


def test_the_shapes_of_a_checkpoint_are_those_of_its_models(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = describe(weights(tiny.folder(tmp_path / "folder")))
    for part in PARTS:
        named = {name: shape for name, shape in tiny.shapes()[part].items() if name.endswith(".weight")}
        wanted = {name.removesuffix(".weight"): named[name] for name in named if "embeddings." not in name}
        for each in (checkpoint, folder):
            found = layers_of(each, part)
            assert {name: found.get(name) for name in wanted} == wanted
            assert found.keys() - wanted.keys() <= {"text_projection"}


def test_another_familys_lora_is_refused_before_anything_is_loaded(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tiny.lora(tmp_path / "x.safetensors", dims=tiny.Dims(text=(320, 1), text_2=(448, 1)))
    with pytest.raises(WeightsError, match=r"Stable Diffusion 1.x LoRA: its context width is 768, .* wants 80"):
        stack(path).run(Model(checkpoint))


def test_only_the_parts_with_a_strength_must_fit(checkpoint: Checkpoint, tmp_path: Path) -> None:
    tensors = load_file(tiny.lora(tmp_path / "unet.safetensors", parts=("unet",)))
    odd = {f"lora_te1_text_model_encoder_layers_0_mlp_fc1{end}": torch.zeros(4, 4) for end in PAIR}
    save_file(tensors | odd, tmp_path / "x.safetensors")
    assert stack(tmp_path / "x.safetensors", clip=0.0).run(Model(checkpoint)).loras[0].layers[0][0] == "unet"
    with pytest.raises(WeightsError, match=r"at text_model.encoder.layers.0.mlp.fc1 it changes a weight of shape"):
        stack(tmp_path / "x.safetensors").run(Model(checkpoint))


def test_no_strength_is_no_lora(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tiny.lora(tmp_path / "x.safetensors")
    assert stack(path, model=0.0, clip=0.0).run(Model(checkpoint)).loras == ()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.bfloat16])
def test_weights_that_are_no_numbers_are_refused(value: float, dtype: torch.dtype, unet: Any, tmp_path: Path) -> None:
    tensors = load_file(tiny.lora(tmp_path / "x.safetensors", parts=("unet",)))
    name = "lora_unet_middle_block_1_proj_in.lora_up.weight"
    tensors[name] = tensors[name].to(dtype)
    tensors[name][3, 1] = value
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match=rf"damaged: {name} holds values that are no numbers"):
        lora.attach(unet, "unet", weights(tmp_path / "x.safetensors"), MEMORY)


def test_tensors_that_do_not_go_together_are_refused(unet: Any, tmp_path: Path) -> None:
    stem, width = "lora_unet_middle_block_1_proj_in", unet.mid_block.attentions[0].proj_in.in_features
    pair = {f"{stem}.lora_down.weight": torch.zeros(4, width), f"{stem}.lora_up.weight": torch.zeros(width, 5)}
    save_file(pair, tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match=r"'x.safetensors' does not fit together at mid_block.attentions.0.proj_in"):
        lora.attach(unet, "unet", weights(tmp_path / "x.safetensors"), MEMORY)


def test_a_layer_with_a_tensor_missing_is_counted_as_left_over(checkpoint: Checkpoint, tmp_path: Path) -> None:
    tensors = load_file(tiny.lora(tmp_path / "x.safetensors", parts=("unet",)))
    del tensors["lora_unet_middle_block_1_proj_in.lora_up.weight"]
    save_file(tensors, tmp_path / "x.safetensors")
    ((_, changed, left),) = fit(weights(tmp_path / "x.safetensors"), checkpoint, ("unet",))
    assert (changed, left) == (sum(tiny.targeted(name, conv=False) for name in tiny.shapes()["unet"]) - 1, 1)


@pytest.mark.parametrize("text", ["{", "[1]", '{"unet.lora_alpha": "x"}', '{"unet.alpha_pattern": 3}'])
def test_metadata_that_is_no_settings_is_refused(text: str, unet: Any, tmp_path: Path) -> None:
    path = tiny.lora(tmp_path / "x.safetensors", layout="peft", parts=("unet",))
    save_file(load_file(path), path, {"lora_adapter_metadata": text})
    with pytest.raises(WeightsError, match=r"'x.safetensors' has metadata .* that cannot be read"):
        lora.attach(unet, "unet", weights(path), MEMORY)


def test_an_alpha_pattern_is_never_run(unet: Any, tmp_path: Path) -> None:
    path = tiny.lora(tmp_path / "x.safetensors", layout="peft", parts=("unet",))
    settings = {"unet.lora_alpha": 4, "unet.alpha_pattern": {"(a+)+$": 2.0, "(": 3.0}}
    save_file(load_file(path), path, {"lora_adapter_metadata": json.dumps(settings)})
    lora.attach(unet, "unet", weights(path), MEMORY)
    lora.detach(unet)


def test_checking_a_lora_imports_no_torch(tmp_path: Path, checkpoint: Checkpoint) -> None:
    path = tiny.lora(tmp_path / "x.safetensors")
    code = (
        "import sys\nfrom claygraph.stages.lora import LoraStack\nfrom claygraph.files import weights\n"
        "from claygraph.diffusion.describe import describe\nfrom claygraph.values import Model\n"
        "given = describe(weights('checkpoint', sys.argv[2]))\n"
        "print(LoraStack.of(x={'path': sys.argv[1]}).run(Model(given)).loras[0].layers)\n"
        "sys.exit('torch' in sys.modules)"
    )
    run = [sys.executable, "-c", code, str(path), checkpoint.weights.path]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-500:]
    assert "('unet', " in done.stdout


def test_names_go_there_and_back() -> None:
    layers = [name.removesuffix(".weight") for name in tiny.shapes()["unet"] if name.endswith(".weight")]
    assert [diffusers_name(ldm_name(layer)) for layer in layers] == layers


def test_every_layer_lies_in_the_block_of_its_number() -> None:
    sides = {"input_blocks": "IN", "output_blocks": "OUT"}
    for layer in (name.removesuffix(".weight") for name in tiny.shapes()["unet"] if name.endswith(".weight")):
        side, number = [*tiny.ldm_unet(layer).split("."), ""][:2]
        wanted = f"{sides[side]}{int(number):02}" if side in sides else "MID" if side == "middle_block" else "BASE"
        assert BLOCKS[block_of(layer)] == wanted


def test_block_weights_are_read_as_the_field_writes_them() -> None:
    given = block_weights("x", {"in": 0, "IN4": 0.5, "M00": 2, "OUT01": -1, "base": 0.25})
    assert given == (("IN", 0.0), ("IN04", 0.5), ("MID", 2.0), ("OUT01", -1.0), ("BASE", 0.25))
    strengths = dict(zip(BLOCKS, by_block(Lora(None, 0.8, blocks=given)), strict=True))  # type: ignore[arg-type]
    wanted = {f"IN{n:02}": 0.0 for n in range(9)} | {f"OUT{n:02}": 0.8 for n in range(9)}
    wanted |= {"IN04": 0.4, "MID": 1.6, "OUT01": -0.8, "BASE": 0.2}
    assert strengths == pytest.approx(wanted)
    assert summed([("a", (1.0, 2.0)), ("b", (0.0, 1.0)), ("a", (0.5, -2.0))]) == {"a": (1.5, 0.0), "b": (0.0, 1.0)}


@pytest.mark.parametrize(("blocks", "said"), [({"INN04": 1}, "IN04"), ({"OUT9": 1}, "OUT"), ({"MID": "x"}, "out of")])
def test_a_wrong_block_weight_is_told(blocks: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingError, match=rf"lora.clay.blocks.{next(iter(blocks))}.*{said}"):
        stack(Path("x.safetensors"), blocks=blocks)
    with pytest.raises(SettingError, match=r"lora.clay.blocks=3 is no mapping"):
        stack(Path("x.safetensors"), blocks=3)


def test_rows_with_their_own_block_weights_equal_merged_weights(unet: Any, tmp_path: Path) -> None:
    given = weights(tiny.lora(tmp_path / "x.safetensors", parts=("unet",), conv=True, alpha=None))
    tables = [{"IN": 0.0, "MID": 0.5, "OUT01": 2.0}, {}, {"IN": 0.0, "OUT": 0.0, "MID": 0.0, "BASE": 0.0}, {"OUT": 0.0}]
    loras = [Lora(given, 0.6, blocks=block_weights("x", table)) for table in tables]
    plain = outputs(unet, 4)
    lora.attach(unet, "unet", given, MEMORY)
    lora.set_strengths(unet, [{given.digest: by_block(each)} for each in loras])
    found = outputs(unet, 4)
    lora.detach(unet)
    for row, each in enumerate(loras):
        assert error(found[row], _merged(unet, each)[row]) <= 1e-9
    assert torch.equal(found[2], plain[2])


def _merged(unet: Any, given: Lora) -> torch.Tensor:
    """Outputs with the change, times the strength of its block, in the weights themselves."""
    tensors = {name: tensor.double() for name, tensor in load_file(given.weights.path).items()}
    original = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    changed, strengths = dict(original), dict(given.blocks)
    for name in (name for name in tiny.shapes()["unet"] if tiny.targeted(name, conv=True)):
        side, number = tiny.ldm_unet(name).split(".")[:2]
        group = {"input_blocks": "IN", "output_blocks": "OUT"}.get(side, "MID" if side == "middle_block" else "BASE")
        own = f"{group}{int(number):02}" if group in ("IN", "OUT") else group
        scale = given.model * strengths.get(own, strengths.get(group, 1.0))
        down, up = (tensors[key] for key in pair_names(name.removesuffix(".weight"), "sgm"))
        changed[name] = original[name] + scale * product(up, down)
    unet.load_state_dict(changed)
    result = outputs(unet, 4)
    unet.load_state_dict(original)
    return result


def test_a_held_file_is_read_anew_when_it_changes(tmp_path: Path) -> None:
    path = written(tmp_path / "x.safetensors", *(f"lora_unet_conv_in{end}" for end in PAIR))
    assert len(held(path).shapes) == 2
    written(path, *(f"lora_unet_{layer}{end}" for layer in ("conv_in", "conv_out") for end in PAIR))
    assert len(held(path).shapes) == 4


def test_everywhere_is_every_block() -> None:
    assert everywhere(0.3) == by_block(Lora(None, 0.3))  # type: ignore[arg-type]
