"""The reference set's sections on text, LoRAs, image prompts, ControlNets, pictures and the whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests import independent as by
from tests.make_parity import (
    NEGATIVE,
    POSITIVE,
    SEGMENTS,
    Book,
    drawn,
    edge_picture,
    encoded,
    halves,
    picture,
    run,
    setting,
)
from tests.make_parity_words import captions

LINEAR = {"node": "IPAdapterAdvanced", "ipadapter": "plain", "combine_embeds": "concat", "embeds_scaling": "V only"}
SHARES = {
    "linear": [1.0] * 11,
    "style transfer": [0.0] * 6 + [1.0] + [0.0] * 4,
    "weak middle": [1.0] * 4 + [0.2] + [1.0] * 6,
}


def text(book: Book) -> None:
    """Prompts, weights, layers, and the size vector."""
    prompts = {"plain": ("a cat", [("a cat", 1.0)]), "weight": (POSITIVE, SEGMENTS), "empty": ("", [])}
    prompts["nested"] = ("((a cat) on (a mat:0.5))", [("a cat", 1.331), (" on ", 1.21), ("a mat", 0.5)])
    prompts["nested"] = ("(a (cat:0.5))", [("a ", 1.1), ("cat", 0.5)])
    for name, (prompt, segments) in prompts.items():
        hidden, pooled = by.words(segments)
        book.add(f"text/{name}", "transformers", {"cond": hidden, "pooled": pooled}, inputs={"prompt": prompt})
    for skip in (-1, -3):
        hidden, pooled = by.words(SEGMENTS, layer=skip)
        outputs = {"cond": hidden, "pooled": pooled}
        book.add(f"skip{skip}/weight", "transformers", outputs, inputs={"prompt": POSITIVE})
    vector = by.size_vector(by.words([("a cat", 1.0)])[1], 64, 192)
    book.add("adm_plain", "formula", {"adm_y": vector}, inputs={"prompt": "a cat", "width": 192, "height": 64})


def lora(book: Book) -> None:
    """LoRAs merged into the weights; the peft file as a tool reaches it that reads its text half and no alpha."""
    folder = book.weights / "lora"
    _merged(book, "none", [], [], [])
    kohya: dict[str, Any] = {"file": "kohya.safetensors", "strength_model": 0.7, "strength_clip": 0.4}
    _merged(book, "kohya", [kohya], [(folder / kohya["file"], 0.7)], [(folder / kohya["file"], 0.4)])
    peft: dict[str, Any] = {"file": "peft.safetensors", "strength_model": 0.7, "strength_clip": 0.4}
    _merged(book, "peft", [peft], [], [(folder / peft["file"], 0.4)])


def _merged(
    book: Book, name: str, loras: list[Any], model: list[tuple[Path, float]], clip: list[tuple[Path, float]]
) -> None:
    words, latent, start = halves(clip), encoded(picture(0)), drawn(0, 1, 4, 8, 8)
    settings = setting("euler", "simple")
    made = run(settings, words, latent, start, model=by.unet(model))
    more: dict[str, Any] = {}
    for short, (hidden, pooled) in (("pos", words.positive), ("neg", words.negative)):
        more |= {f"{short}_cond": hidden, f"{short}_pooled": pooled}
    asked = {
        "positive": POSITIVE,
        "negative": NEGATIVE,
        "loras": loras,
        "latent_in": book.keep("inputs/latent", latent),
    }
    book.sampled(name, "merged, transformers and k-diffusion", made, settings, start, more=more, **asked)


def ip_adapter(book: Book) -> None:
    """diffusers' processors, without block 4 as the recorded tool ran, and with it."""
    photo = picture(1, 224)
    book.keep("inputs/img_shapes_uint8", photo)
    book.prompts(halves())
    for name, weight in (("linear", 0.8), ("style transfer", 1.0)):
        _with_image(book, f"plain/{name}/w{weight}", photo, name, weight, alive=False)
    _with_image(book, "middle_alive/plain/weak middle", photo, "weak middle", 1.0, alive=True)


def _with_image(book: Book, case: str, photo: Any, name: str, weight: float, alive: bool) -> None:
    folder = book.weights / "ip_adapter"
    adapter = folder / "ip-adapter_tiny.safetensors"
    tokens = by.image_tokens(adapter, folder / "image_encoder", photo)
    scales = [weight * share * (alive or block != 4) for block, share in enumerate(SHARES[name])]
    model, start = by.with_images(by.unet(), adapter, [scales]), drawn(0, 1, 4, 8, 8)
    settings, nothing = setting("euler", "simple", denoise=1.0), torch.zeros(1, 4, 8, 8)
    made = run(settings, halves(), nothing, start, model=model, changes=[by.give_images([tokens])])
    node = {**LINEAR, "image": "shapes", "weight": weight, "weight_type": name, "start_at": 0.0, "end_at": 1.0}
    more = {"tokens0_cond": tokens[0], "tokens0_uncond": tokens[1]}
    latent_in = book.keep("inputs/nothing", nothing)
    book.sampled(case, "diffusers", made, settings, start, chain=[node], latent_in=latent_in, more=more)


def controlnet(book: Book) -> None:
    """diffusers' ControlNet at two strengths, in a window, and twice."""
    hint, latent, start = edge_picture(picture(0)), encoded(picture(0)), drawn(0, 1, 4, 8, 8)
    folder, words = book.weights / "controlnet/canny", halves()
    book.prompts(words)
    book.keep("inputs/hint_canny", hint)
    latent_in = book.keep("inputs/latent", latent)
    for strength, window, denoise in ((1.0, (0.0, 1.0), 0.6), (0.5, (0.0, 0.6), 1.0), (0.7, (0.3, 1.0), 1.0)):
        settings = setting("euler", "simple", denoise=denoise)
        change = by.give_hint(folder, hint, strength, *window)
        made = run(settings, words, latent, start, changes=[change])
        asked: dict[str, Any] = {
            "node": "ControlNetApplyAdvanced",
            "control_net": "canny",
            "hint": "canny",
            "strength": strength,
        }
        asked |= {"strength": strength, "start_percent": window[0], "end_percent": window[1], "latent_in": latent_in}
        name = f"core/s{strength}/{window[0]}-{window[1]}/d{denoise}"
        book.sampled(name, "diffusers", made, settings, start, **asked)


def vae(book: Book) -> None:
    """Latents of pictures whose sides are and are not multiples of 8, and back."""
    for name, pixels in (("square", picture(0)), ("odd", picture(1)[:43, :50])):
        high, wide = (side // 8 * 8 for side in pixels.shape[:2])
        top, left = ((side - kept) // 2 for side, kept in zip(pixels.shape[:2], (high, wide), strict=True))
        latent = encoded(np.ascontiguousarray(pixels[top : top + high, left : left + wide]))
        outputs = {"latent": latent, "decoded_f16": _decoded(latent).astype(np.float16)[None]}
        asked = {"image_uint8": book.keep(f"{name}/image", pixels)}
        book.add(name, "diffusers", outputs, inputs=asked)
    whole = np.clip(255 * _decoded(torch.from_numpy(book.arrays["square/latent"])), 0, 255).astype(np.uint8)
    book.add("levels", "cut off", {"uint8": whole}, inputs={"latent": "square/latent"})


def _decoded(latent: Tensor) -> Any:
    found = ((by.vae().decode(latent).sample + 1) / 2).clamp(0, 1)
    return found[0].permute(1, 2, 0).numpy()


def edges(book: Book) -> None:
    """OpenCV's Canny."""
    photo = book.keep("photo", picture(0))
    asked = {"detector": "Canny", "low": 100, "high": 200, "image": photo}
    book.add("canny", "OpenCV", {"uint8": edge_picture(picture(0))}, inputs=asked)


def wd14(book: Book) -> None:
    """Strings by rule, of pictures of one colour."""
    colours = {"violet": (204, 255, 102), "olive": (230, 230, 0), "at": (0, 255, 153)}
    plain: dict[str, Any] = {"threshold": 0.35, "character_threshold": 0.85, "replace_underscore": False}
    variants: dict[str, dict[str, Any]] = {
        "plain": {}, "spaces": {"replace_underscore": True}, "comma": {"trailing_comma": True},
        "at the threshold": {"threshold": 0.6}, "characters": {"character_threshold": 0.3},
        "excluded": {"exclude_tags": "red_theme, Star_(symbol)"},
        "excluded as not written": {"exclude_tags": "red_theme", "replace_underscore": True},
    }  # fmt: skip
    for name, colour in colours.items():
        image = book.keep(f"{name}/image", np.full((20, 20, 3), colour, np.uint8))
        for variant, more in variants.items():
            settings: dict[str, Any] = plain | more
            written = captions.written(colour, settings)
            asked = {"image": image, "tagger": settings}
            book.cases.append({"id": f"{name}/{variant}", "inputs": asked, "outputs": {"tags": written}})


def workflow(book: Book) -> None:
    """A LoRA, two pictures for style and composition, a tagger's words and a ControlNet in one run."""
    content, style = picture(0), picture(1, 224)
    lora, folder = book.weights / "lora/kohya.safetensors", book.weights / "ip_adapter"
    adapter = folder / "ip-adapter_tiny.safetensors"
    content = np.kron(content, np.ones((1, 1, 1), np.uint8))
    tokens = [by.image_tokens(adapter, folder / "image_encoder", each) for each in (style, _large(content))]
    scales = [[0.9 * (block == 6) for block in range(11)], [0.6 * (block == 3) for block in range(11)]]
    hint, latent, start = edge_picture(content), encoded(content), drawn(0, 1, 4, 8, 8)
    words, settings = halves([(lora, 0.4)]), setting("dpmpp_2m")
    changes = [by.give_images(tokens), by.give_hint(book.weights / "controlnet/canny", hint, 0.7, 0.0, 0.8)]
    model = by.with_images(by.unet([(lora, 0.5)]), adapter, scales)
    made = run(settings, words, latent, start, model=model, changes=changes)
    book.sampled(
        "main", "all of it", made, settings, start, **_workflow(book, content, style, latent, hint, tokens, words, made)
    )


def _large(pixels: Any) -> Any:
    """A picture at 224 x 224, as torch resizes it with antialias."""
    picture = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    large = torch.nn.functional.interpolate(picture, (224, 224), mode="bicubic", antialias=True)
    return large[0].permute(1, 2, 0).mul(255).clamp(0, 255).round().to(torch.uint8).numpy()


def _workflow(
    book: Book, content: Any, style: Any, latent: Tensor, hint: Any, tokens: Any, words: by.Halves, made: by.Run
) -> dict[str, Any]:
    node: dict[str, Any] = {
        "file": "plain",
        "node": "IPAdapterStyleComposition",
        "image_style": "style image",
        "expand_style": False,
    }
    node |= {
        "weight_style": 0.9,
        "weight_composition": 0.6,
        "combine_embeds": "average",
        "start_at": 0.0,
        "end_at": 1.0,
    }
    control = {"file": "controlnet/canny", "node": "core", "strength": 0.7, "start_percent": 0.0, "end_percent": 0.8}
    lora = {"file": "kohya.safetensors", "strength_model": 0.5, "strength_clip": 0.4}
    image = _decoded(made.latent)
    more = {"canny_uint8": hint, "image_f16": image.astype(np.float16)[None]}
    more |= {"image_uint8": np.clip(255 * image, 0, 255).astype(np.uint8)}
    more |= {"ip_tokens0_style": tokens[0][0], "ip_tokens1_composition": tokens[1][0]}
    for short, (hidden, pooled) in (("pos", words.positive), ("neg", words.negative)):
        more |= {f"{short}_cond": hidden, f"{short}_pooled": pooled}
    return {
        "loras": [lora],
        "content_image": book.keep("content", content),
        "style_image": book.keep("style", style),
        "ipadapter": node,
        "positive": POSITIVE,
        "negative": NEGATIVE,
        "canny": {"detector": "Canny", "low": 100, "high": 200},
        "controlnet": control,
        "latent_in": book.keep("latent", latent),
        "more": more,
    }


SECTIONS = {
    "text": text, "lora": lora, "ipadapter": ip_adapter, "controlnet": controlnet, "vae": vae, "edges": edges,
    "wd14": wd14, "workflow": workflow,
}  # fmt: skip
