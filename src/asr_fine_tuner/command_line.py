"""Parameters from flags, the environment and `.env`; help; and errors that name the nearest parameter."""

from __future__ import annotations

import argparse
import difflib
import os
import re
import types
import typing
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from dotenv import dotenv_values, load_dotenv
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, SettingsConfigDict

from asr_fine_tuner.errors import PermanentError
from asr_fine_tuner.parameters import JobParameters, PreflightParameters, PreprocessParameters, TrainParameters

ENV_PREFIX = "ASR_"
ENV_FILE = ".env"
TOKENS = ("HF_TOKEN", "WANDB_API_KEY")
# Kubernetes tells every container of a Service named `asr` by these (ASR_SERVICE_HOST, ASR_PORT_80_TCP_ADDR).
_OF_A_SERVICE = re.compile(r"ASR_(SERVICE|PORT)(_|$)")
P = TypeVar("P", bound=JobParameters)

_DESCRIPTIONS = {
    PreprocessParameters: "Turn a speech dataset into the artifact that the train job reads.",
    TrainParameters: "Fine-tune Whisper on an artifact of the preprocess job, and publish the model.",
    PreflightParameters: "Find out in minutes what a train job with the same parameters would fail with after hours.",
}

_EPILOG = """\
Each parameter is a flag (--max_train_samples 100, also --max-train-samples 100), an environment variable
(ASR_MAX_TRAIN_SAMPLES=100) or a line in .env; flags win, then the environment, then .env. The value none stands for
"not given".

Tokens come only from the environment or .env: HF_TOKEN (gated or private repositories, publishing) and WANDB_API_KEY
(Weights & Biases; WANDB_MODE=offline logs without it).

Exit codes: 0 done, 1 a bug, 2 permanent (parameters, data, authorisation), 75 transient (try again),
143 interrupted (run again to continue). The last line of stdout is one JSON object.
"""


def read_parameters(kind: type[P], program: str, argv: Sequence[str]) -> P:
    """Parse `argv` over the environment over `.env`.

    Raises:
        PermanentError: a parameter is unknown, missing or out of its range.
        SystemExit: `--help` was asked for.
    """
    flags = vars(_parser(kind, program).parse_args(_underscored(argv, kind)))
    dotenv = dotenv_values(ENV_FILE)
    _refuse_unknown_variables(os.environ, "environment variable")
    _refuse_unknown_variables(dotenv, f"line in {ENV_FILE}")
    # HF_HOME, HF_TOKEN and the like in .env have to be in the environment before the Hub's client is imported.
    load_dotenv(ENV_FILE, override=False)

    class Layered(BaseSettings, kind):  # type: ignore[valid-type,misc]
        model_config = SettingsConfigDict(
            env_prefix=ENV_PREFIX, env_file=ENV_FILE, extra="ignore", env_ignore_empty=True, env_parse_none_str="none"
        )

    given = {name: value for name, value in flags.items() if value is not None}
    given = {name: None if str(value).lower() == "none" else value for name, value in given.items()}
    try:
        values = Layered(**given).model_dump(exclude_unset=True)
    except ValidationError as error:
        raise _explained(error, kind, given, dotenv) from None
    return kind(**values)


def parameters_from(kind: type[P], given: Mapping[str, object]) -> P:
    """Parameters by name, as functions that a platform calls are given them.

    Raises:
        PermanentError: a parameter is unknown, missing or out of its range.
    """
    for name in given:
        if name not in kind.model_fields:
            raise _unknown(name, name, kind)
    try:
        return kind.model_validate(dict(given))
    except ValidationError as error:
        raise _explained(error, kind, given, {}) from None


@dataclass(frozen=True, slots=True)
class ParameterHelp:
    """What `--help` and the README tell of one parameter."""

    type_name: str
    unit: str
    default: str
    meaning: str

    def __str__(self) -> str:
        default = self.default if self.default == "required" else f"default: {self.default}"
        return f"{self.meaning} [{self.unit + '; ' if self.unit else ''}{default}]"


def describe(field: FieldInfo) -> ParameterHelp:
    extra = field.json_schema_extra
    default = "required" if field.is_required() else "none" if field.default is None else str(field.default)
    return ParameterHelp(
        type_name=_name_of(field.annotation),
        unit=str(extra.get("unit", "")) if isinstance(extra, dict) else "",
        default=default.lower() if _is_bool(field) else default,
        meaning=field.description or "",
    )


def _parser(kind: type[JobParameters], program: str) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=program,
        usage=f"{program} [--PARAMETER VALUE ...]",
        description=_DESCRIPTIONS[kind],
        epilog=_EPILOG,
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
        argument_default=None,
    )
    for name, field in sorted(kind.model_fields.items(), key=lambda item: not item[1].is_required()):
        parser.add_argument(
            f"--{name}",
            metavar=describe(field).type_name,
            nargs="?" if _is_bool(field) else None,
            const="true" if _is_bool(field) else None,
            help=str(describe(field)).replace("%", "%%"),
        )
    return parser


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=36, width=118)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> typing.NoReturn:
        raise PermanentError(
            given=f"command line: {message}", expected="--PARAMETER VALUE pairs", action=f"see {self.prog} --help"
        )


def _underscored(argv: Sequence[str], kind: type[JobParameters]) -> list[str]:
    """`--max-steps=3` -> `--max_steps=3`; refuses unknown flags, so that values which look like flags stay values."""
    known = set(kind.model_fields)
    flags = []
    for argument in argv:
        if not argument.startswith("--") or argument in ("--", "--help"):
            flags.append(argument)
            continue
        name, equals, value = argument[2:].partition("=")
        name = name.replace("-", "_")
        if name not in known:
            raise _unknown(f"--{name}", name, kind)
        flags.append(f"--{name}{equals}{value}")
    return flags


def _refuse_unknown_variables(variables: Mapping[str, str | None], called: str) -> None:
    # One .env serves both jobs, so a variable is known when either job has the parameter.
    known = {**PreprocessParameters.model_fields, **TrainParameters.model_fields}
    for variable in sorted(variables):
        if _OF_A_SERVICE.match(variable):
            continue
        name = variable.upper().removeprefix(ENV_PREFIX).lower()
        if variable.upper().startswith(ENV_PREFIX) and name not in known:
            nearest = _nearest(name, known)
            raise PermanentError(
                given=f"the {called} {variable}, which names no parameter",
                expected=f"{ENV_PREFIX}{nearest.upper()}" if nearest else "a parameter's name after ASR_",
                action="correct or remove it",
            )


def _unknown(shown: str, name: str, kind: type[JobParameters]) -> PermanentError:
    name = name.lower()
    if name in {token.lower() for token in TOKENS}:
        return PermanentError(
            given=f"{shown} as a parameter",
            expected=f"the token in the environment variable {name.upper()}",
            action="set the variable; tokens on a command line are visible to everyone on the machine",
        )
    for other, job in ((PreprocessParameters, "preprocess"), (TrainParameters, "train")):
        if other is not kind and name in other.model_fields:
            return PermanentError(
                given=f"unknown parameter {shown}",
                expected="a parameter of this job",
                action=f"leave it out: it belongs to python -m jobs.{job}",
            )
    nearest = _nearest(name, kind.model_fields)
    return PermanentError(
        given=f"unknown parameter {shown}",
        expected=f"--{nearest}" if nearest else "one of the parameters that --help lists",
        action="correct the name" if nearest else "see --help",
    )


def _nearest(name: str, known: Collection[str]) -> str | None:
    """The known name that was most likely meant: the shortest that begins so, else the most similar one."""
    begin_so = sorted((candidate for candidate in known if candidate.startswith(name)), key=len)
    return next(iter(begin_so or difflib.get_close_matches(name, known, n=1, cutoff=0.5)), None)


def _explained(
    error: ValidationError, kind: type[JobParameters], flags: Mapping[str, object], dotenv: Mapping[str, str | None]
) -> PermanentError:
    given, expected = [], []
    for problem in error.errors(include_url=False):
        name = str(problem["loc"][0]) if problem["loc"] else ""
        if problem["type"] == "missing":
            given.append(f"no {name}")
            expected.append(
                f"--{name} {describe(kind.model_fields[name]).type_name}: {kind.model_fields[name].description}"
            )
            continue
        if name:
            given.append(f"{_where(name, flags, dotenv)}: {problem['input']!r}")
        else:
            given.append("parameters that do not go together")
        expected.append(problem["msg"].removeprefix("Value error, ").removeprefix("Input should be "))
    return PermanentError(given="; ".join(given), expected="; ".join(expected), action="correct it; see --help")


def _where(name: str, flags: Mapping[str, object], dotenv: Mapping[str, str | None]) -> str:
    variable = f"{ENV_PREFIX}{name.upper()}"
    if name in flags:
        return f"--{name}"
    return f"{variable} in {ENV_FILE}" if dotenv.get(variable) == os.environ.get(variable) else variable


def _is_bool(field: FieldInfo) -> bool:
    return field.annotation is bool


def _name_of(annotation: object) -> str:
    origin = typing.get_origin(annotation)
    if origin is typing.Literal:
        return "|".join(str(choice) for choice in typing.get_args(annotation))
    if origin is typing.Annotated:
        return _name_of(typing.get_args(annotation)[0])
    if origin in (types.UnionType, typing.Union):
        return "|".join(_name_of(part) for part in typing.get_args(annotation) if part is not type(None))
    if annotation is bool:
        return "true|false"
    return {str: "TEXT", int: "INT", float: "FLOAT"}[typing.cast("type", annotation)]
