"""A stage is a frozen dataclass with a typed ``run``: fields are settings, parameters are input ports."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, TypeVar

if TYPE_CHECKING:
    from claygraph.memory import Memory

T = TypeVar("T")


@dataclass(frozen=True)
class Stage(ABC):
    """Base of every plug-in.

    A plain ``run`` is host work and runs in a thread. An ``async`` one awaits device calls, which the
    scheduler batches with those of other graphs. Raise ``version`` when the same settings and inputs
    give another result than before: it is part of every node's key.
    """

    version: ClassVar[int] = 1

    @abstractmethod
    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the stage's value from the values of the stages it is wired to."""

    def files(self) -> Sequence[str]:
        """Paths of the files whose content decides the result; their digests are part of the node's key.

        A setting that is such a path, or a folder above, counts by what is in the file and not by where that lies.
        """
        return ()

    def notes(self, upstream: Mapping[str, Stage]) -> Sequence[str]:  # noqa: ARG002 - for stages that look
        """What a user should know before a run, a sentence each, given the stages this one builds on, by name."""
        return ()

    def picture_size(self) -> tuple[int, int] | None:
        """Height and width in pixels of a picture that it reads, where that can be told before it runs."""
        return None

    def denoising_steps(self) -> int:
        """How many steps it denoises for, each at least one pass of the model."""
        return 0


class Port(NamedTuple):
    """One input of a stage: the type it takes, and whether it can be left open."""

    kind: Any
    required: bool


@cache
def ports(kind: type[Stage]) -> dict[str, Port]:
    """The input ports of a stage class, by name."""
    parameters = signature(kind.run, eval_str=True).parameters
    return {
        name: Port(parameter.annotation, parameter.default is Parameter.empty)
        for name, parameter in parameters.items()
        if name != "self"
    }


@cache
def makes(kind: type[Stage]) -> Any:
    """The type a stage class puts on the wire."""
    return signature(kind.run, eval_str=True).return_annotation


@dataclass(frozen=True, eq=False)
class Call(Generic[T]):
    """A device call: ``await`` one, and the scheduler runs it together with whatever shares its key.

    ``notes`` is for ``run_batch`` to say how the call was computed, by what; run.json counts them for each node.
    """

    name: ClassVar[str] = "call"
    notes: dict[str, str] = field(default_factory=dict, init=False, repr=False)

    def __await__(self) -> Generator[Call[T], T, T]:
        return (yield self)

    @property
    def batch_key(self) -> Hashable:
        """Calls of one class with equal keys may share a batch."""
        return None

    @property
    def affinity(self) -> Hashable:
        """Calls for which this is equal are cheaper together: they go first into one batch where not all fit."""
        return None

    @property
    def progress(self) -> tuple[int, int] | None:
        """Which step of how many this call is, where it is one of several."""
        return None

    @property
    def row_bytes(self) -> int:
        """A guess, rather too high, of the bytes that computing this call takes beside weights; 0 where none is made.

        Calls of one batch key take the same. On a GPU what was measured replaces the guess.
        """
        return 0

    @classmethod
    def run_batch(cls, calls: Sequence[Any], memory: Memory) -> list[T]:
        """Compute every call's value in one pass; as many values as calls, in order."""
        raise NotImplementedError
