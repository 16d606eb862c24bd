"""A setting is said once, as a field of a dataclass: parser, ``--help``, ``--config``, checks and resume are made from it.

A dataclass of settings is one part of a command (its class attribute ``title`` is the group in ``--help``), and a command's
configuration inherits from its parts; dataclasses put the fields of the last base first. simple-parsing, tyro, jsonargparse and
draccus were tried. None leaves fields to some commands only or has a range and a rule for resuming in its fields, so that each
would need most of this file beside it.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import re
import shutil
import sys
import textwrap
import types
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import yaml

from dclr.errors import InputError, place
from dclr.parse import parsing, read_whole
from dclr.text import plain, public

RECIPES = Path(__file__).parent / "recipes"  # in the repository a link to the one copy; a wheel has the files
MAX_BYTES, MAX_DEPTH = 1 << 16, 4  # of a recipe; lists and tables in one another
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's, ten times as fast, where PyYAML was built with it
NONE = "none"  # on a command line: the empty list
WIDTH, COLUMN = 100, 26  # of --help: most columns, and where what it says of a flag begins
SHORT = 24  # letters of a range that --help shows
NUMBERS = {int: "a whole number", float: "a number"}
SEEDS = 2**63 - 1  # the most that one may be, and its least below 0
MANY = 10**6  # the most of what is counted and costs nothing by itself, such as epochs
C = TypeVar("C")


@dataclass(frozen=True)
class Meta:
    """What a field says beside its name, type and default."""

    help: str = ""
    short: str = ""  # such as -j
    metavar: str = ""
    choices: Collection[str | int] = ()
    least: float | None = None  # of a number, which says its range: least or above, and most or below
    above: float = -math.inf
    most: float | None = None
    below: float = math.inf
    free: bool = False  # a run that is resumed may change it
    place: bool = False  # a path or URL: not empty, ~ expanded, kept without its secrets
    read: Callable[[str], Any] | None = None  # the whole text -> value, raises InputError; a tuple with it is no list
    nargs: str = "+"  # of a list; * where it may be empty
    group: str = ""  # of --help, where it is not the part's title
    instead: str = ""  # the setting in whose place it is: one of both alone is given
    derived: str = ""  # where the default is None, empty or this machine's: what that comes to, for --help
    before: Any = ...  # what runs did that were made before the setting existed; every new one says it


def setting(default: Any = MISSING, help: str = "", *, factory: Any = MISSING, **said: Any) -> Any:
    """A dataclass field that is a flag; without ``default`` and ``factory`` it is required. ``said`` is the rest of
    :class:`Meta`."""
    return _field(default, factory, Meta(help, **said))


def _field(default: Any, factory: Any, said: Meta) -> Any:
    return dataclasses.field(default=default, default_factory=factory, metadata={"setting": said})


def again(part: type, name: str, default: Any = MISSING, **changes: Any) -> Any:
    """The setting ``name`` of another dataclass, with its default unless another one is given, and with ``changes``."""
    field = part.__dataclass_fields__[name]  # type: ignore[attr-defined]
    said = dataclasses.replace(field.metadata["setting"], **changes)
    return _field(field.default, field.default_factory, said) if default is MISSING else _field(default, MISSING, said)


@dataclass(frozen=True)
class Flag:
    """A setting as a command has it: ``kind`` is the type of its value, or of each of a list's (``many``)."""

    field: Field[Any]
    said: Meta
    kind: type
    many: bool
    optional: bool
    title: str

    @property
    def required(self) -> bool:
        return self.field.default is MISSING and self.field.default_factory is MISSING

    @property
    def default(self) -> Any:
        return self.field.default_factory() if self.field.default_factory is not MISSING else self.field.default

    @property
    def read(self) -> Callable[[str], Any]:
        """One text of the command line -> value."""
        reader = self.said.read or (self._number if self.kind in NUMBERS else None)
        return self.kind if reader is None else as_type(reader)

    def _number(self, text: str) -> Any:
        """A number in the digits of ASCII alone; raises InputError."""
        try:
            if text.isascii() and not re.search(r"[_\s]", text):
                return self.kind(text)
        except ValueError:
            pass
        raise InputError(f"{plain(repr(text), 80)}: expected {NUMBERS[self.kind]}{self.range and ', '}{self.range}")

    @property
    def range(self) -> str:
        """Of a number, in words; empty where there is none."""
        return range_of(self.said) if self.kind in NUMBERS and not self.said.choices and self.said.read is None else ""

    @property
    def metavar(self) -> str | None:
        """What stands for the value in ``--help``; None: the name."""
        choices = f"{{{','.join(map(str, self.said.choices))}}}" if self.said.choices and not self.many else None
        return self.said.metavar or choices

    def help(self, value: Any = MISSING) -> str:
        """With the choices, where these do not stand for the value, and the default: ``value``, where a file says that."""
        told, within = self.said.help, f"{self.range}; " if 0 < len(self.range) <= SHORT else ""
        if self.said.choices and self.metavar == self.said.metavar:
            told += f": {'any' if self.many else 'one'} of {', '.join(map(str, self.said.choices))}"
        if value is not MISSING:
            told += f" ({within}default: {self.shown(value)})"
        elif self.required:
            told += f" ({within}required)"
        else:
            made = self.field.default is MISSING and self.said.derived
            told += f" ({within}default: {made or self.shown(self.default)})"
        return told.strip().replace("%", "%%")

    def values(self, words: Sequence[str]) -> tuple[Any, ...]:
        """The list that a command line or a file says, as ``a b``, ``a,b`` or both. No value, or ``none``, is the empty list
        where it may be empty. Places are told apart by spaces alone, because a path may have a comma. Raises ValueError for a
        value that is none of its kind, InputError where there must be one."""
        parts = list(words) if self.said.place else several(words)
        if parts in ([], [NONE]) and (self.said.nargs == "*" or (not self.required and self.default == ())):
            return ()
        if not parts:
            raise InputError("it is empty, expected at least one value")
        return tuple(map(self.read, parts))

    def text(self, value: Any) -> str:
        """A value as the command line has it."""
        return (",".join(map(str, value)) or NONE) if isinstance(value, list | tuple) else str(value)

    def typed(self, value: Any) -> str:
        """The flag and a value as the command line has them, such as ``--lr 0.1``, ``--no-cos`` and ``no --cache``."""
        name = flag(self.field.name)
        if value is None:
            return f"no {name}"
        return (name if value else flag(f"no_{self.field.name}")) if isinstance(value, bool) else f"{name} {self.text(value)}"

    def shown(self, value: Any) -> str:
        """A value as ``--help`` says it."""
        if value in (None, ()):
            return self.said.derived or NONE
        return ("no", "yes")[value] if isinstance(value, bool) else self.text(value)


def as_type(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """A reader that raises InputError as argparse wants the type of a flag."""

    def told(text: str) -> Any:
        try:
            return read(text)
        except InputError as error:
            raise argparse.ArgumentTypeError(str(error).strip()) from None

    return told


def several(words: Sequence[str]) -> list[str]:
    """The values of a list as command lines have it, with commas or spaces between them.

    >>> several(["train01,train02", "test01"])
    ['train01', 'train02', 'test01']
    """
    return [part.strip() for word in words for part in word.split(",") if part.strip()]


def flag(name: str) -> str:
    """``"lr_decay"`` -> ``"--lr-decay"``."""
    return f"--{name.replace('_', '-')}"


def flags(settings: type) -> dict[str, Flag]:
    """The settings of a dataclass by name, in its order; a field without :func:`setting` is none."""
    titles: dict[str, str] = {}
    for part in reversed(settings.__mro__):  # what a part inherits keeps its group
        if "title" in vars(part):
            titles = {field.name: vars(part)["title"] for field in fields(part)} | titles
    hints, found = get_type_hints(settings), {}
    for field in fields(settings):
        if (said := field.metadata.get("setting")) is None:
            continue
        kind = hints[field.name]
        if optional := types.NoneType in get_args(kind):
            (kind,) = (one for one in get_args(kind) if one is not types.NoneType)
        many, kind = (True, get_args(kind)[0]) if get_origin(kind) is tuple and said.read is None else (False, kind)
        title = said.group or titles.get(field.name, "")
        found[field.name] = Flag(field, said, kind, many, optional, title)
    return found


class _Formatter(argparse.HelpFormatter):
    """At most :data:`WIDTH` columns, and the same on every version of Python."""

    def __init__(self, prog: str, **more: Any):
        super().__init__(prog, **{"max_help_position": COLUMN, "width": min(WIDTH, shutil.get_terminal_size().columns)} | more)
        self._action_max_length = COLUMN  # also where all names are short

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n\n".join(super(_Formatter, self)._fill_text(part, width, indent) for part in text.split("\n\n"))

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        value = str(action.metavar or action.dest.upper()) + " ..." * (action.nargs in ("+", "*"))
        return f"{', '.join(action.option_strings)} {value}"


class Parser(argparse.ArgumentParser):
    """argparse whose mistakes are an :class:`InputError`, one line, and whose flags are :func:`flags`.

    Its help ends with ``told``, title -> name -> what that is, such as the columns of a list; and with ``examples``, what one
    does -> its arguments.
    """

    def __init__(
        self, told: Mapping[str, Mapping[str, str]] | None = None, examples: Mapping[str, str] | None = None, **more: Any
    ):
        usual: dict[str, Any] = {"prog": Path(sys.argv[0]).name, "formatter_class": _Formatter}
        super().__init__(**usual | more)
        self.flags: dict[str, Flag] = {}
        self.told, self.examples = told or {}, examples or {}

    def error(self, message: str) -> Any:
        raise InputError(f"{message}; {self.prog} --help says what there is")

    def _print_message(self, message: str, file: Any = None) -> None:
        """As argparse, which hides that what it prints could not be written."""
        (file or sys.stderr).write(message)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse, but for ``--help``: it comes last, so that it shows what a ``--config`` beside it says."""
        words = list(sys.argv[1:] if args is None else args)
        asked = [word for word in words if word in ("-h", "--help")]
        found, strange = super().parse_known_args([word for word in words if word not in asked] + asked[:1], namespace)
        if strange:  # said here, a command's own error names its own help
            self.error(f"unrecognized arguments: {' '.join(strange)}")
        return found, strange

    def format_help(self) -> str:
        width, blocks = min(WIDTH, shutil.get_terminal_size().columns), [super().format_help()]
        for title, rows in self.told.items():
            blocks.append("".join([f"{title}:\n", *(_row(name, what, width) for name, what in rows.items())]))
        if self.examples:
            command = f"python {self.prog}" if self.prog.partition(" ")[0].endswith(".py") else self.prog
            shown = [f"  # {what}\n{_wrapped(f'{command} {said}', width)}" for what, said in self.examples.items()]
            blocks.append("".join(["examples:\n", *shown]))
        return "\n".join(blocks)

    def add(self, *settings: type, without: Collection[str] = (), by_recipe: bool = False) -> Parser:
        """Flags for all settings of these dataclasses but ``without``, which are refused as other commands', and ``--config``;
        ``by_recipe`` also ``--recipe``, one of :func:`recipes`."""
        self.add_argument(
            "--config", action=_FromFile, metavar="YAML", default=argparse.SUPPRESS,
            help="take flags from a YAML table, such as a recipe, by name or file, or the config.yaml of a pretraining; flags "
            "beside it win, and --help beside it shows its values (default: none)",
        )  # fmt: skip
        if by_recipe:
            self.add_argument(
                "--recipe", dest="config", action=_FromFile, metavar="NAME", default=argparse.SUPPRESS, type=as_type(recipe),
                help=f"take the flags of a file in recipes/, as --config does: one of {', '.join(recipes())} (default: none)",
            )  # fmt: skip
        self.epilog = "A flag of several values takes them as A,B or as A B, paths as A B alone."
        every = [item for part in settings for item in flags(part).items()]
        shown = [one for name, one in every if name not in without]
        titles = [one.title for one in sorted(shown, key=lambda one: bool(one.said.group))]  # a part's before others' guests
        groups = {title: self.add_argument_group(title) if title else self for title in dict.fromkeys(titles)}
        for name, one in every:
            names = [*([one.said.short] if one.said.short else []), flag(name)]
            if name in without:
                self.add_argument(*names, nargs="*", action=_OfOthers, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
                continue
            self.flags[name] = one
            how: dict[str, Any] = {"action": argparse.BooleanOptionalAction}  # --no-NAME takes it back from a file
            if one.kind is not bool:
                how = {"metavar": one.metavar}
                how |= {"action": partial(_Several, one), "nargs": one.said.nargs} if one.many else {"type": one.read}
            groups[one.title].add_argument(*names, dest=name, default=argparse.SUPPRESS, help=one.help(), **how)
        asked = [str(action.metavar) for action in self._actions if not action.option_strings]
        asked += [f"{flag(name)} {one.said.metavar or name.upper()}" for name, one in self.flags.items() if one.required]
        self.usage = " ".join(["%(prog)s", *asked, "[flags]"])
        return self

    def given(self, argv: Sequence[str] | None = None) -> dict[str, Any]:
        """What a command line, and before it the file of its ``--config``, say: value by name."""
        found = vars(self.parse_args(argv))
        parser, table = found.pop("config", (self, {}))
        return parser.over(table, found)

    def over(self, first: Mapping[str, Any], then: Mapping[str, Any]) -> dict[str, Any]:
        """What ``then`` says, and what ``first`` does and ``then`` does not, nor in its place (``instead``)."""
        pairs = [(name, one.said.instead) for name, one in self.flags.items() if one.said.instead]
        gone = {old for pair in pairs for old, new in (pair, pair[::-1]) if then.get(new) is not None}
        return {name: value for name, value in first.items() if name not in gone} | dict(then)


class _Several(argparse.Action):
    def __init__(self, one: Flag, **more: Any):
        super().__init__(**more)
        self._one = one

    def __call__(self, parser: Any, namespace: Any, words: Any, option: str | None = None) -> None:
        try:
            setattr(namespace, self.dest, self._one.values(words))
        except (ValueError, argparse.ArgumentTypeError) as error:
            raise argparse.ArgumentError(self, _mistake(self._one, ", ".join(words), error)) from None


class _FromFile(argparse.Action):
    def __call__(self, parser: Any, namespace: Any, path: Any, option: str | None = None) -> None:
        _, before = getattr(namespace, "config", (parser, {}))
        path = Path(place(path, "--config"))
        if not path.exists():
            path = recipes().get(str(path), path)
        table = parser.over(before, from_file(path, parser))
        namespace.config = parser, table
        for action in parser._actions:
            if action.dest in table:
                action.help = parser.flags[action.dest].help(table[action.dest])


class _OfOthers(argparse.Action):
    def __call__(self, parser: Any, namespace: Any, value: Any, option: str | None = None) -> None:
        parser.error(f"{option} is no flag of {parser.prog}, only of other commands")


def _row(name: str, what: str, width: int) -> str:
    """A name, and beside it or below it what it is."""
    lines, begin = textwrap.wrap(what, width - COLUMN, break_on_hyphens=False), f"  {name}".ljust(COLUMN)
    beside = [] if begin.endswith("  ") else [begin.rstrip()]
    first = begin if not beside else " " * COLUMN
    return "".join(f"{line}\n" for line in [*beside, first + lines[0], *(" " * COLUMN + line for line in lines[1:])])


def _wrapped(command: str, width: int) -> str:
    """A command on as many lines as it needs, a flag beside its values."""
    together = re.sub(r" (?!-)", "\N{NO-BREAK SPACE}", command)
    lines = textwrap.wrap(together, width - 8, break_long_words=False, break_on_hyphens=False)
    return "  " + " \\\n      ".join(lines).replace("\N{NO-BREAK SPACE}", " ") + "\n"


def recipes() -> dict[str, Path]:
    """The files of the recipes by name."""
    return {path.stem: path for path in sorted(RECIPES.glob("*.yaml"))}


def recipe(name: str) -> str:
    """The file of a recipe; raises InputError for one that is not there."""
    if name not in (there := recipes()):
        raise InputError(f"{plain(name, 80)}: expected one of {', '.join(there)}")
    return str(there[name])


def from_flags(settings: type[C], given: Mapping[str, Any], **more: Any) -> C:
    """The dataclass that ``given`` and ``more`` say; raises InputError for a required flag that is in neither."""
    every, given = flags(settings), dict(given) | more
    absent = [flag(name) for name, one in every.items() if one.required and name not in given]
    if absent:
        raise InputError(f"the following arguments are required: {', '.join(absent)}; --help says what there is")
    return settings(**more | {name: given[name] for name in every if name in given})


def read_yaml(path: Path) -> Any:
    """What a recipe or a run's config.yaml says. A few bytes stay a few values: no list may refer to another one, nor be deep.
    Raises what the file system and the parser raise, and InputError for a file of more than :data:`MAX_BYTES`."""
    data, depth = read_whole(path, MAX_BYTES, "a recipe"), 0
    for event in yaml.parse(data, LOADER):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"it refers to *{event.anchor}, expected each value where it belongs")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise ValueError(f"more than {MAX_DEPTH} lists and tables in one another")
    return yaml.load(data, LOADER)


def from_file(path: Path, parser: Parser) -> dict[str, Any]:
    """What a saved configuration or a recipe (YAML, a flat table: ``lr: 0.01``) says, value by name.

    A table that has every setting without a ``before`` is a run's own: what it lacks has the value of before it existed.
    Raises InputError for a file that cannot be read, is no table of plain values, or names what is no flag.
    """
    found = {}
    try:
        with parsing(f"--config {path}", "a readable YAML file"):
            table = read_yaml(path)
            if not isinstance(table, dict):
                raise InputError(f"--config {path}: expected a table of flags, such as lr: 0.01")
            for name, value in table.items():
                if name not in parser.flags:
                    raise InputError(f"--config {path}: {plain(repr(name), 80)} is no flag of {parser.prog}")
                try:
                    if value is not None or parser.flags[name].optional:
                        found[name] = _from_yaml(parser.flags[name], value)
                except (ValueError, argparse.ArgumentTypeError) as error:
                    wrong = _mistake(parser.flags[name], value, error)
                    raise InputError(f"--config {path}: argument {flag(name)}: {wrong}") from None
    except OSError as error:
        raise InputError(f"--config {path}: not a readable YAML file ({error.strerror})") from None
    older = {name: one.said.before for name, one in parser.flags.items() if one.said.before is not ...}
    return older | found if set(parser.flags) <= {*table, *older} else found


def _mistake(one: Flag, value: Any, error: Exception) -> str:
    """What is wrong with a value of a flag."""
    if isinstance(error, argparse.ArgumentTypeError | InputError):
        return str(error)
    return f"invalid {one.kind.__name__} value: {plain(repr(value), 80)}"


def _from_yaml(one: Flag, value: Any) -> Any:
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(item, str | int | float | bool | None) for item in values):
        raise InputError(f"it is {plain(repr(value), 80)}, expected a plain value or a list of them")
    if value is None:
        return None
    if one.kind is bool or any(isinstance(item, bool) or item is None for item in values):
        if one.kind is not bool or not isinstance(value, bool):
            raise ValueError
        return value
    if one.many:
        return one.values([str(item) for item in values])
    if isinstance(value, list):
        raise ValueError
    return one.read(str(value))


def check_values(settings: Any) -> None:
    """What every dataclass of settings checks first, in its ``__post_init__``: numbers are in their field's range, which has
    what is finite alone, choices are among those it has, and places are not empty; ``~`` in these is expanded. Raises
    InputError naming the flag."""
    for field in fields(settings):
        value, said = getattr(settings, field.name), field.metadata.get("setting", Meta())
        many = isinstance(value, list | tuple)
        for item in value if many else (value,):
            if item is None:
                continue
            if said.choices and item not in said.choices:
                raise InputError(
                    f"{flag(field.name)} {item}: expected {'any' if many else 'one'} of {', '.join(map(str, said.choices))}"
                )
            if isinstance(item, int | float) and not _inside(item, said):
                raise InputError(f"{flag(field.name)} {plain(str(item), 40)}: expected {range_of(said) or 'a finite number'}")
        if said.instead and value is not None and (other := getattr(settings, said.instead)) is not None:
            raise InputError(f"{flag(field.name)} {value} with {flag(said.instead)} {other}: expected one of them")
        if said.place and value is not None:
            where = [place(item, flag(field.name)) for item in (value if many else [value])]
            object.__setattr__(settings, field.name, tuple(where) if many else where[0])


def _inside(number: float, said: Meta) -> bool:
    """Whether a number is in its field's range: never where it is not finite."""
    low = number > said.above if said.least is None else number >= said.least
    return low and (number < said.below if said.most is None else number <= said.most)


def range_of(said: Meta) -> str:
    """The range of a number in words.

    >>> range_of(Meta(least=1, most=1024)), range_of(Meta(above=0, most=1)), range_of(Meta())
    ('1 to 1024', 'above 0 to 1', '')
    """
    low = _shown(said.least) if said.least is not None else f"above {_shown(said.above)}" * math.isfinite(said.above)
    high = _shown(said.most) if said.most is not None else f"below {_shown(said.below)}" * math.isfinite(said.below)
    if low and high:
        return f"{low} to {high}"
    return "at least " * (said.least is not None) + low + "at most " * (said.most is not None) + high


def _shown(limit: float) -> str:
    return str(limit) if isinstance(limit, int) else f"{limit:g}"


def free(settings: type) -> set[str]:
    """The settings that a run may change where it is resumed."""
    return {name for name, one in flags(settings).items() if one.said.free}


def as_table(settings: Any) -> dict[str, Any]:
    """Plain values by field, tuples as lists, places without secrets: what :func:`from_file` reads back as YAML."""
    places = {name for name, one in flags(type(settings)).items() if one.said.place}
    return {name: _kept(value, name in places) for name, value in dataclasses.asdict(settings).items()}


def _kept(value: Any, is_place: bool) -> Any:
    if isinstance(value, tuple | list):
        kept = [_kept(item, is_place) for item in value]
        return kept[0] if is_place and len(kept) == 1 else kept  # as before there could be several
    return public(value) if is_place and isinstance(value, str) else value


def completed(settings: type, table: Mapping[str, Any]) -> dict[str, Any]:
    """The table of an older run, with what it did where a setting did not exist yet (``before``)."""
    older = {name: one.said.before for name, one in flags(settings).items() if one.said.before is not ...}
    return older | dict(table)


Table = dict[str, Any]


def differences(
    settings: Any, table: Mapping[str, Any], resolved: Callable[[Table], Table] = lambda table: table
) -> Iterator[tuple[str, str, str]]:
    """What a run that is to be resumed was made with, by its ``table``, and these settings have otherwise: name, ours and
    theirs as the command line has them; not what is ``free``. ``resolved`` says what settings that were left open came to, in
    either table; what was given is shown as it was given."""
    given = as_table(settings), completed(type(settings), table)
    ours, theirs = map(resolved, given)
    for name, one in flags(type(settings)).items():
        if not one.said.free and ours[name] != _kept(theirs.get(name), one.said.place):
            shown = [raw.get(name) or found.get(name) for raw, found in zip(given, (ours, theirs), strict=True)]
            yield name, one.text(shown[0]), one.text(_kept(shown[1], one.said.place))
