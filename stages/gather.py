"""Several pictures as one."""

from __future__ import annotations

from dataclasses import dataclass

from claygraph.stage import Stage
from claygraph.values import Image, Pictures


@dataclass(frozen=True)
class Gather(Stage):
    """Pictures in order, for a port that takes several (``ip_adapter.inputs.style_image``); gathers nest."""

    def run(
        self,
        first: Image | Pictures,
        second: Image | Pictures,
        third: Image | Pictures | None = None,
        fourth: Image | Pictures | None = None,
    ) -> Pictures:
        given = [each for each in (first, second, third, fourth) if each is not None]
        return Pictures(
            tuple(image for each in given for image in (each.images if isinstance(each, Pictures) else (each,)))
        )
