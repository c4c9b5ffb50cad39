"""The IP-Adapter stage: which picture speaks in which block, presets, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from claygraph.diffusion.adapter_presets import PRESETS, REFUSED, VIT_G, VIT_H, find_adapter, find_encoder
from claygraph.diffusion.calls import EmbedImages
from claygraph.errors import SettingError, WeightsError
from claygraph.stage import Call
from claygraph.stages.gather import Gather
from claygraph.stages.ip_adapter import IpAdapter
from claygraph.values import Image, Model, Pictures
from tests import tiny, tiny_adapters
from tests.denoising import base, memory, picture, weights


def stage(**settings: Any) -> IpAdapter:
    path = weights(tiny_adapters.ip_adapter, "plain.safetensors").path
    encoder = weights(tiny_adapters.image_encoder, "encoder").path
    return IpAdapter(**{"path": path, "encoder": encoder} | settings)


def result(one: IpAdapter, model: Model | None = None, **pictures: Image | Pictures) -> Model:
    """What the stage makes, its calls run as they come."""
    task = one.run(model or Model(base()), picture(1, 30, 40), **pictures)
    value = None
    while True:
        try:
            call: Call[Any] = task.send(value)
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]
        (value,) = type(call).run_batch([call], memory())


def tokens_of(*images: Image) -> Any:
    one = stage()
    adapter, encoder = one.weights()
    (tokens,) = EmbedImages.run_batch([EmbedImages(adapter, encoder, images)], memory())
    return tokens


def test_one_picture_is_one_prompt() -> None:
    (prompt,) = result(stage(style=0.7, composition=0.4, start=0.1, end=0.8, embeds_scaling="K+V")).image_prompts
    assert prompt.scales == (0, 0, 0, 0.4, 0, 0, 0.7, 0, 0, 0, 0)
    assert (prompt.start, prompt.end, prompt.scaling, prompt.mask) == (0.1, 0.8, "K+V", None)
    assert np.array_equal(prompt.tokens, tokens_of(picture(1, 30, 40)))
    assert np.array_equal(prompt.negative, tokens_of())


def test_style_composition_and_negative_come_from_their_own_pictures() -> None:
    style, composition, negative = (picture(seed, 30, 30) for seed in (5, 6, 7))
    model = result(stage(), style_image=style, composition_image=composition, negative_image=negative)
    first, second = model.image_prompts
    assert [block for block, scale in enumerate(first.scales) if scale] == [6]
    assert [block for block, scale in enumerate(second.scales) if scale] == [3]
    for prompt, image in ((first, style), (second, composition)):
        assert np.allclose(prompt.tokens, tokens_of(image), atol=1e-5)
        assert np.allclose(prompt.negative, tokens_of(negative), atol=1e-5)


def test_a_style_picture_alone_leaves_composition_to_the_photo_only_where_the_type_has_it() -> None:
    style = picture(5, 30, 30)
    assert len(result(stage(), style_image=style).image_prompts) == 2
    (prompt,) = result(stage(weight_type="linear"), style_image=style).image_prompts
    assert np.allclose(prompt.tokens, tokens_of(style), atol=1e-5)


def test_several_pictures_are_gathered() -> None:
    images = [picture(seed, 20, 30) for seed in (5, 6, 7)]
    gathered = Gather().run(Gather().run(images[0], images[1]), images[2])
    assert gathered.images == tuple(images)
    (prompt,) = result(stage(weight_type="linear"), style_image=gathered).image_prompts
    assert prompt.tokens.shape[0] == 3 * prompt.negative.shape[0]
    (prompt,) = result(stage(weight_type="linear", combine="max"), style_image=gathered).image_prompts
    assert prompt.tokens.shape == prompt.negative.shape


def test_precise_types_swap_and_layer_weights_replace_the_table() -> None:
    (prompt,) = result(stage(weight_type="style transfer precise", boost=2.0)).image_prompts
    assert (prompt.swapped, prompt.scales[3], prompt.scales[6]) == (frozenset({3}), 2.0, 1.0)
    assert stage(layer_weights="3:2.5, 6:1", style=2.0).scales() == (0, 0, 0, 5.0, 0, 0, 2.0, 0, 0, 0, 0)
    assert IpAdapter.of(blocks={6: 0.5}, preset="Composition").scales()[6] == 0.5


def test_a_mask_is_brightness() -> None:
    pixels = np.zeros((2, 2, 3), np.uint8)
    pixels[0] = 255
    (prompt,) = result(stage(), attention_mask=Image(pixels)).image_prompts
    assert prompt.mask is not None
    assert prompt.mask.tolist() == [[1, 1], [0, 0]]


def test_stages_stack_and_strength_zero_adds_nothing() -> None:
    one = result(stage())
    assert len(result(stage(weight_type="linear"), one).image_prompts) == 2
    assert result(stage(style=0.0, composition=0.0), one) is one


def test_crop_changes_what_clip_sees() -> None:
    left, right = (result(stage(crop=crop)).image_prompts[0].tokens for crop in ("left", "right"))
    assert np.abs(left - right).max() > 0.01


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"weight_type": "styel"}, "weight_type='styel' is not known"),
        ({"embeds_scaling": "K only"}, "embeds_scaling='K only'.*did you mean 'V only'"),
        ({"combine": "averge"}, "combine='averge'.*did you mean 'average'"),
        ({"crop": "middle"}, "crop='middle' is not known"),
        ({"sharpening": 0.5}, "sharpening=0.5 needs a picture cut to a square; give ip_adapter.crop"),
        ({"boost": 6}, "boost=6 is out of range; give a number from -5 to 5"),
        ({"blocks": ((11, 1.0),)}, "blocks=11 is no block; blocks are numbered 0 to 10"),
        ({"layer_weights": "x"}, "layer_weights='x' is not a list of BLOCK:STRENGTH"),
        ({"path": None}, "path is not given; name a file, or a preset"),
        ({"preset": "Kolors"}, "'Kolors' is for the Kolors model; give one of STANDARD"),
        ({"preset": "FACEID PLUS V2"}, "needs a face recogniser"),
        ({"preset": "PLUS (hgh strength)"}, r"did you mean 'PLUS \(high strength\)'"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingError, match=f"ip_adapter.*{said}"):
        stage(**settings)


@pytest.mark.parametrize("name", REFUSED)
def test_presets_for_other_models_are_refused(name: str) -> None:
    with pytest.raises(SettingError, match="give one of STANDARD"):
        stage(preset=name)


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_presets_find_their_files(tmp_path: Path) -> None:
    touch(tmp_path, *(f"ipadapter/{each.adapter}.safetensors" for each in PRESETS.values()))
    touch(tmp_path, f"clip_vision/{VIT_H}.safetensors", f"clip_vision/{VIT_G}/config.json")
    for name, preset in PRESETS.items():
        assert Path(find_adapter(name, str(tmp_path))).stem == preset.adapter
        assert preset.encoder in find_encoder(name, str(tmp_path))


def test_presets_look_in_a_copy_of_the_repository_and_past_case_and_punctuation(tmp_path: Path) -> None:
    touch(tmp_path, "IP-Adapter/sdxl_models/IP_Adapter_Plus_SDXL_ViT-H.safetensors")
    touch(
        tmp_path, "IP-Adapter/models/image_encoder/config.json", "IP-Adapter/sdxl_models/ip-adapter-plus_sdxl_vit-h.bin"
    )
    assert find_adapter("PLUS (high strength)", str(tmp_path)).endswith("ViT-H.safetensors")
    assert find_encoder("PLUS (high strength)", str(tmp_path)).endswith("models/image_encoder")


def test_what_a_preset_does_not_find_is_said_with_the_nearest(tmp_path: Path) -> None:
    touch(tmp_path, "ipadapter/ip-adapter-plus_sdxl_vit-g.safetensors")
    with pytest.raises(WeightsError) as caught:
        find_adapter("PLUS (high strength)", str(tmp_path))
    said = str(caught.value)
    assert "'PLUS (high strength)' needs the adapter ip-adapter-plus_sdxl_vit-h.safetensors" in said
    assert f"not in {tmp_path}/ipadapter, {tmp_path}/IP-Adapter/sdxl_models (no such folder)" in said
    assert "did you mean 'ip-adapter-plus_sdxl_vit-g.safetensors'?" in said
    assert said.endswith("or name a file in ip_adapter.path.")


def test_a_pickle_of_the_right_name_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "ipadapter/ip-adapter_sdxl.bin")
    one = IpAdapter(preset="VIT-G (medium strength)", models=str(tmp_path))
    with pytest.raises(WeightsError, match=r"'ip-adapter_sdxl.bin' is a pickle.*give the .safetensors version"):
        one.files()


def test_an_adapter_of_another_family_is_refused_before_anything_is_encoded() -> None:
    path = weights(tiny_adapters.ip_adapter, "wide.safetensors", dims=tiny.Dims(text=(720, 4))).path
    with pytest.raises(WeightsError, match=r"'wide.safetensors'.*width 768 \(SD1.5\), but 'base.safetensors' reads 80"):
        stage(path=path).run(Model(base()), picture(1, 30, 40)).send(None)
