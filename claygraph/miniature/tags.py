"""The tag vocabulary shared by captions, taggers and prompts, and the colour tags read off a picture."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

RATINGS = ("general", "sensitive", "questionable", "explicit")
STYLES = ("photo", "3d", "flat", "claymation")
HUES = {
    "red": ((0, 8), (172, 180)),
    "orange": ((8, 20),),
    "yellow": ((20, 34),),
    "green": ((34, 85),),
    "blue": ((85, 130),),
    "purple": ((130, 155),),
    "pink": ((155, 172),),
}
TONES = ("dark", "bright", "grey")
GROUPS = {
    "Smileys & Emotion": "smiley",
    "People & Body": "person",
    "Animals & Nature": "animal",
    "Food & Drink": "food",
    "Travel & Places": "place",
    "Activities": "activity",
    "Objects": "object",
    "Symbols": "symbol",
}
KEYWORDS = (  # noqa: SIM905
    "face woman man smile heart hand clock fish bird cat flower plant tree fruit vehicle boat building house water sun "
    "moon star book tool music ball clothing hat drink animal-face square circle arrow family couple sport weather "
    "insect mail money phone light"
).split()
CHARACTERS = ("robot", "ghost", "snowman", "alien")


def colour_tags(picture: npt.NDArray[np.uint8]) -> list[str]:
    """Hues that cover more than 15% of an RGB picture, then dark, bright or grey where they hold."""
    hue, saturation, value = np.moveaxis(cv2.cvtColor(picture, cv2.COLOR_RGB2HSV), -1, 0)
    vivid = (saturation > 70) & (value > 50)
    found = [
        name
        for name, ranges in HUES.items()
        if (vivid & np.any([(hue >= low) & (hue < high) for low, high in ranges], axis=0)).mean() > 0.15
    ]
    level = picture.mean()
    tones = (level < 70, level > 175, (saturation < 40).mean() > 0.5)
    return found + [tone for tone, holds in zip(TONES, tones, strict=True) if holds]


def subject_tags(name: str, group: str, tags: list[str]) -> list[str]:
    """Group, keyword and character tags of an emoji, from its Unicode name, group and keyword list."""
    words = set(name.lower().replace("-", " ").split()) | {t.lower().replace(" ", "-") for t in tags}
    return [GROUPS[group], *(w for w in (*KEYWORDS, *CHARACTERS) if w in words)]
