"""Step `evaluate`: figures on sources kept out of training, and a contact sheet to look at."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from PIL import Image

from claygraph.miniature import tags as vocabulary
from claygraph.miniature.clayify import edges
from claygraph.miniature.family import final_vae, load_base, load_controlnet, load_lora
from claygraph.miniature.image_encoder import embed, load_image_encoder
from claygraph.miniature.ip_adapter import load_ip_adapter
from claygraph.miniature.latents import encode
from claygraph.miniature.sampling import Rig, img2img
from claygraph.miniature.train_taggers import TAGS, Examples, _fit
from claygraph.miniature.train_vae import to_pictures

Pixels = npt.NDArray[np.uint8]
SETTINGS = (
    (0.5, 0.0, 0.0),
    (0.5, 0.0, 1.0),
    (0.5, 1.0, 0.0),
    (0.5, 1.0, 1.0),
    (0.7, 0.0, 1.0),
    (0.7, 1.0, 0.0),
    (0.7, 1.0, 1.0),
)
"""(denoise, clay LoRA strength, ControlNet strength) combinations that are measured."""


def evaluate(work: Path, weights: Path, count: int = 8) -> None:
    """Write `evaluation.json` and `evaluation.png` below `work`, and print the figures."""
    held = np.load(work / "pairs_held_out/256x256.npz")
    pictures, clay = held["picture"][:count], held["clay"][:count]
    figures: dict[str, object] = {"vae_psnr": _vae_psnr(work, {"picture": pictures, "clay": clay})}
    rig = _rig(work)
    score = ClayScore(weights / "tagger/moat/model.onnx")
    rows, table = [pictures], []
    for denoise, lora, control in SETTINGS:
        rig.set_lora(clay=lora)
        rig.control = control
        out = img2img(rig, pictures, ["claymation, made-of-clay" if lora else "photo"] * count, denoise)
        rows.append(out)
        table.append({"denoise": denoise, "lora": lora, "control": control} | compare(out, pictures, clay, score))
        print(json.dumps(table[-1]), flush=True)
    figures |= {"source": compare(pictures, pictures, clay, score), "img2img": table}
    figures["clay target"] = compare(clay, pictures, clay, score)
    figures["tagger_map"] = {
        name: tagger_map(work, weights / "tagger" / name / "model.onnx") for name in ("moat", "vit")
    }
    figures["ip_colour_error"] = _ip_colour_error(work, pictures)
    (work / "evaluation.json").write_text(json.dumps(figures, indent=1))
    sheet([*rows, clay], work / "evaluation.png")
    print(json.dumps(figures, indent=1))


def sheet(rows: list[Pixels], file: Path) -> None:
    """Save pictures as a grid, one list of equal pictures a row."""
    Image.fromarray(np.concatenate([np.concatenate(list(row), 1) for row in rows], 0)).save(file)


def psnr(one: Pixels, other: Pixels) -> float:
    """Peak signal-to-noise ratio in dB, a mean over pictures."""
    error = ((one.astype(float) - other.astype(float)) ** 2).mean((1, 2, 3))
    return round(float((10 * np.log10(255**2 / np.maximum(error, 1e-9))).mean()), 2)


def edge_f1(result: Pixels, source: Pixels) -> float:
    """How well the result's Canny lines meet the source's, within 2 hint pixels."""
    kernel = np.ones((5, 5), np.uint8)
    mine, wanted = (np.stack([edges(p) > 0 for p in pictures]) for pictures in (result, source))
    wide_mine, wide_wanted = (np.stack([cv2.dilate(e.astype(np.uint8), kernel) > 0 for e in s]) for s in (mine, wanted))
    precision = (mine & wide_wanted).sum() / max(1, mine.sum())
    recall = (wanted & wide_mine).sum() / max(1, wanted.sum())
    return round(float(2 * precision * recall / max(1e-6, precision + recall)), 3)


def compare(result: Pixels, source: Pixels, clay: Pixels, score: ClayScore) -> dict[str, float]:
    """Clay score, edge F1 against the source, PSNR against the clay target, saturation."""
    saturation = np.mean([cv2.cvtColor(p, cv2.COLOR_RGB2HSV)[..., 1].mean() for p in result])
    return {
        "clay_score": score(result),
        "edge_f1": edge_f1(result, source),
        "psnr_to_clay": psnr(result, clay),
        "saturation": round(float(saturation), 1),
    }


class ClayScore:
    """Mean probability of the tag `claymation` by an exported tagger."""

    def __init__(self, file: Path) -> None:
        self.session = onnxruntime.InferenceSession(str(file))

    def __call__(self, pictures: Pixels) -> float:
        """Of RGB pictures [N,H,W,3]."""
        values = np.stack([_fit(p)[..., ::-1] for p in pictures]).astype(np.float32)
        found = self.session.run(None, {"input": values})[0]
        return round(float(found[:, TAGS.index("claymation")].mean()), 3)


def tagger_map(work: Path, file: Path, count: int = 400) -> dict[str, float]:
    """Mean average precision of an exported tagger on held-out sources, by kind of tag."""
    examples, session = Examples(work, seed=5, held_out=True), onnxruntime.InferenceSession(str(file))
    pictures, wanted = (t.numpy() for t in examples.batch(count))
    found = session.run(None, {"input": pictures})[0]
    kinds = {
        "style": vocabulary.STYLES,
        "colour": (*vocabulary.HUES, *vocabulary.TONES),
        "group": tuple(vocabulary.GROUPS.values()),
        "keyword": vocabulary.KEYWORDS,
    }
    return {kind: _mean_precision(wanted, found, [TAGS.index(t) for t in names]) for kind, names in kinds.items()}


def _mean_precision(wanted: npt.NDArray[np.float32], found: npt.NDArray[np.float32], columns: list[int]) -> float:
    known = [c for c in columns if wanted[:, c].sum() >= 3]
    return round(float(np.mean([average_precision(wanted[:, c], found[:, c]) for c in known])), 3)


def average_precision(wanted: npt.NDArray[np.float32], found: npt.NDArray[np.float32]) -> float:
    """Mean precision at each true example, ranked by score."""
    ranked = wanted[np.argsort(-found)]
    precision = np.cumsum(ranked) / np.arange(1, len(ranked) + 1)
    return float((precision * ranked).sum() / max(1.0, ranked.sum()))


def _vae_psnr(work: Path, kinds: dict[str, Pixels]) -> dict[str, float]:
    vae, out = final_vae(work), {}
    for kind, pictures in kinds.items():
        with torch.no_grad():
            latents = encode(vae, pictures).float() / vae.config.scaling_factor
            out[kind] = psnr(to_pictures(vae.decode(latents).sample), pictures)
    return out


def _rig(work: Path) -> Rig:
    base = load_base(work)
    controlnet = load_controlnet(work, base)
    load_lora(work, base, "clay")
    return Rig(base, final_vae(work), controlnet)


def _ip_colour_error(work: Path, pictures: Pixels) -> dict[str, float]:
    """8x8 colour error (0..255) of pictures drawn from noised grey without edges, without and with the image prompt."""
    base, small = load_base(work), np.stack([cv2.resize(p, (128, 128), interpolation=cv2.INTER_AREA) for p in pictures])
    controlnet = load_controlnet(work, base)
    load_ip_adapter(work, base)
    rig, encoder = Rig(base, final_vae(work), controlnet, control=0.0), load_image_encoder(work)
    errors: dict[str, list[float]] = {"without": [], "with": []}
    for picture in small:
        embedding = embed(encoder, picture[None])
        for kind, image in (("without", torch.zeros_like(embedding)), ("with", embedding)):
            rig.image = image
            drawn = img2img(rig, np.full_like(picture[None], 128), ["photo"], denoise=1.0, cfg=2.5)
            errors[kind].append(_colour_error(drawn[0], picture))
    return {kind: round(float(np.mean(values)), 1) for kind, values in errors.items()}


def _colour_error(one: Pixels, other: Pixels) -> float:
    low = [cv2.resize(p, (8, 8), interpolation=cv2.INTER_AREA).astype(float) for p in (one, other)]
    return float(np.abs(low[0] - low[1]).mean())
