"""What a flag is, the parser that collects them in groups, and the frozen arguments it gives.

A group says once, for all its flags, in which modes they may be typed and what becomes of them when
a run is resumed. Whatever needs a set of flags asks for it here.
"""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, NoReturn

from command_line.streams import CONTROLS
from common.errors import UserError
from common.version import NAME, __version__

TRAIN, SHOW, EVALUATE = "train", "show", "evaluate"
ALL = frozenset({TRAIN, SHOW, EVALUATE})


class Resuming(Enum):
    """What becomes of a flag's value when a run is resumed."""

    FIXED = "kept in the run's state; another value is refused"
    MOVABLE = "kept in the run's state; may be typed anew"
    FORGOTTEN = "belongs to the machine or to one start, and is not kept"


@dataclass(frozen=True)
class Flag:
    """name: as an attribute of the arguments. modes: in which it may be typed. parse, choices: as
    argparse has them. default: its value when it is not typed."""

    name: str
    modes: frozenset[str]
    resuming: Resuming
    parse: Callable[[str], Any] | None = None
    choices: tuple[str, ...] | None = None
    default: Any = None

    def check(self, value: Any) -> bool:
        """Whether a value that a file has is one that could have been typed."""
        if value is None or isinstance(self.default, bool):
            return value is self.default or isinstance(value, bool)
        if self.parse is None:
            return isinstance(value, str) and (self.choices is None or value in self.choices)
        text = "x".join(map(str, value)) if isinstance(value, tuple) else str(value)
        try:
            return self.parse(text) == value and not isinstance(value, bool)
        except (argparse.ArgumentTypeError, ValueError):
            return False

    def __str__(self) -> str:
        return "--" + self.name.replace("_", "-")


class Arguments:
    """The values of all flags as attributes, frozen.

    given: the names of those that were typed. flags: {name: Flag}.
    """

    given: frozenset[str]
    flags: Mapping[str, Flag]

    def __init__(self, values: dict, given: frozenset[str], flags: Mapping[str, Flag]) -> None:
        self.__dict__.update(values, given=given, flags=flags)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"arguments are frozen: {name} cannot be set")

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    @property
    def mode(self) -> str:
        """TRAIN, SHOW or EVALUATE."""
        typed = (mode for mode in (EVALUATE, SHOW) if self.__dict__.get(mode) is not None)
        return next(typed, TRAIN)

    def typed(self, name: str, otherwise: Any) -> Any:
        """The value of a flag where it was typed, else what is known from elsewhere."""
        return getattr(self, name) if name in self.given else otherwise

    def data_root_of(self, facts: Mapping[str, Any]) -> str:
        """Where the data are: as typed, else as a checkpoint's facts have it."""
        return self.typed("data_root", facts.get("data_root", self.data_root))

    @property
    def seeds(self) -> range:
        """One per picture: --seed and the numbers after it."""
        return range(self.seed, self.seed + self.num_images)

    def settings(self) -> dict:
        """{name: value} of what makes a run what it is, to be kept in its state."""
        return {
            name: getattr(self, name)
            for name, flag in self.flags.items()
            if TRAIN in flag.modes and flag.resuming is not Resuming.FORGOTTEN
        }

    def begun_from(
        self, checkpoint: str, fixed: Mapping[str, Any], others: Mapping[str, Any]
    ) -> "Arguments":
        """These arguments for a run that begins with a checkpoint. fixed: {name: value} of what its
        network is; UserError where another value was typed. others: taken where none was typed."""
        for name in sorted(self.given & fixed.keys()):
            if getattr(self, name) != fixed[name]:
                has = fixed[name] if fixed[name] is not None else "none"
                raise UserError(f"{self.flags[name]}: {checkpoint} has {has}; leave it out")
        others = {name: value for name, value in others.items() if name not in self.given}
        return Arguments({**self.__dict__, **fixed, **others}, self.given, self.flags)

    def resumed(self, saved: dict) -> "Arguments":
        """These arguments with the saved settings of a run; what was typed may prolong or move it.

        Raises UserError where something typed contradicts the run.
        """
        values = dict(self.__dict__)
        for name in self.settings():
            flag, value = self.flags[name], saved.get(name, self.flags[name].default)
            value = tuple(value) if isinstance(value, list) else value  # JSON has lists only
            if not flag.check(value):
                what = f"the run to resume has {str(value)[:100]}"
                raise UserError(f"{flag}: {what}, which nobody could have typed; start a new run")
            values[name] = value
        for name in self.given:
            typed, flag = getattr(self, name), self.flags[name]
            if flag.resuming is Resuming.FIXED and typed != values[name]:
                raise UserError(f"{flag}: the run to resume has {values[name]}; leave it out")
            values[name] = typed
        if "epochs" in self.given:
            values["steps"] = None
        return Arguments(values, self.given, self.flags)


class Parser(argparse.ArgumentParser):
    """argparse that knows which flag goes with which mode, and whose errors are one line."""

    def __init__(self, description: str, examples: list[str]) -> None:
        super().__init__(
            description=description,
            epilog="examples:\n" + "\n".join(f"  {example}" for example in examples),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.add_argument("--version", action="version", version=f"{NAME} {__version__}")
        self.flags: dict[str, Flag] = {}

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message.translate(CONTROLS)}\n")

    def group(self, title: str, modes: frozenset[str], resuming: Resuming) -> "Group":
        """A titled group of flags that may be typed in these modes."""
        return Group(self, self.add_argument_group(title), modes, resuming)

    def read(self, argv: list[str] | None) -> tuple[dict, frozenset[str]]:
        """(values of all flags, names of those that were typed); the rest has its defaults."""
        values = vars(self.parse_args(argv))
        unset = object()  # parsed again, what was not typed stays as it is put in
        again = self.parse_args(argv, argparse.Namespace(**dict.fromkeys(values, unset)))
        return values, frozenset(name for name, value in vars(again).items() if value is not unset)

    def refuse(self, names: frozenset[str], other: str) -> None:
        """End with an error where any of these flags, which do not go with another, was typed."""
        if names:
            self.error(f"{self.flags[min(names)]} does not go with --{other}")


@dataclass
class Group:
    """Flags under one title, with their modes and what becomes of them on resuming.

    group: the argparse group, or a mutually exclusive one inside it.
    """

    parser: Parser
    group: Any
    modes: frozenset[str]
    resuming: Resuming

    def either(self, required: bool = False) -> "Group":
        """A group in this one, of whose flags at most one may be typed."""
        exclusive = self.group.add_mutually_exclusive_group(required=required)
        return Group(self.parser, exclusive, self.modes, self.resuming)

    def add(
        self,
        flag: str,
        text: str,
        type: Callable[[str], Any] | None = None,
        metavar: str | tuple[str, ...] | None = None,
        default: Any = None,
        otherwise: str | None = None,
        modes: frozenset[str] | None = None,
        resuming: Resuming | None = None,
        **extra: Any,
    ) -> None:
        """Add a flag whose help ends with the limits of its type and its default, or with what
        happens otherwise, in words. modes and resuming: where not the group's. extra: as argparse
        has it."""
        otherwise = f"default: {otherwise}" if otherwise else None
        otherwise = f"default {default}" if default is not None else otherwise
        notes = "; ".join(filter(None, [getattr(type, "limits", None), otherwise]))
        text += f" ({notes})" if notes else ""
        given = {"type": type, "metavar": metavar, "default": default}  # not to every action
        extra |= {key: value for key, value in given.items() if value is not None}
        action = self.group.add_argument(flag, help=text, **extra)
        self.parser.flags[action.dest] = Flag(
            action.dest, self.modes if modes is None else modes, resuming or self.resuming,
            type, extra.get("choices"), action.default,
        )  # fmt: skip
