"""What can be set from outside, all of it in one place: limits, places, who may come. Knows no model and no page.

A flag of the command line wins over the environment (`EDITCORE_...`), the environment over `editcore.toml` in the data
folder, the file over the default here. The file is read once a process: a change of it counts at the next start.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import AliasChoices, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from editcore.assets import WORLD_NAME
from editcore.errors import BadSetting
from editcore.home import home_dir

FILE = "editcore.toml"
PREFIX = "EDITCORE_"
FLAGS = "EDITCORE_FLAGS"  # names of the settings the command line gave to the page it started
SECRET = frozenset({"password", "database_url"})  # never shown as they are, and never a flag: others could read it
OTHERS = frozenset({"EDITCORE_HOME", FLAGS, "EDITCORE_FAKE_ENGINE"})  # read elsewhere
Origin = Literal["default", "file", "environment", "flag"]


def _listed(value: Any) -> Any:
    """`a, b` as two entries; a JSON list as it is."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        return json.loads(value)
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_listed)]


class Settings(BaseSettings):
    """Every setting, with its bounds and what it is."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, extra="forbid", frozen=True, populate_by_name=True,
        protected_namespaces=(),
    )  # fmt: skip

    # who may come, and what is opened for them
    model: str = Field(WORLD_NAME, description="model of the page: the embedded one, a hub id or a folder")
    revision: str = Field("", max_length=200, description="branch, tag or commit of that model; none: main")
    device: str = Field("", max_length=20, description="where it is put, cpu or cuda:0; none: a GPU if there is one")
    dtype: Literal["", "auto", "float32", "bfloat16", "float16"] = Field(
        "", description="number format of the model; none: chosen for the device"
    )
    device_map: str = Field("", max_length=100_000, description="spread over several GPUs: auto; none: on one device")
    models: Names = Field((), description="hub ids the page may open, separated by commas; none: any")
    model_roots: Names = Field((), description="folders whose model folders the page may open")
    password: SecretStr | None = Field(None, min_length=8, description="asked of everybody who opens the page")
    public_links: bool = Field(False, description="share links open without the password")
    hosts: Names = Field((), description="names the page is reached by, besides this machine's own")
    database_url: SecretStr | None = Field(
        None, validation_alias=AliasChoices("database_url", "DATABASE_URL"), description="a PostgreSQL for a team"
    )

    # what one visitor may ask for
    longest_prompt: int = Field(20_000, ge=1, le=1_000_000, description="characters of a prompt")
    longest_answer: int = Field(2_000, ge=1, le=100_000, description="characters of an answer")
    most_probes: int = Field(1_000, ge=1, le=100_000, description="paraphrases and probes of one edit together")
    most_prompts: int = Field(200, ge=1, le=10_000, description="prompts in one question to the models")
    most_requests: int = Field(1_000, ge=1, le=100_000, description="edits made in one patch")
    most_methods: int = Field(32, ge=1, le=100, description="methods in one comparison")
    most_listed: int = Field(100, ge=1, le=10_000, description="edits of a list the page makes and measures")
    longest_examples: int = Field(5_000_000, ge=1_000, le=10**9, description="characters of a file to train on")
    largest_upload: int = Field(5, ge=1, le=1_000, description="megabytes of a file given to the page")
    largest_archive: int = Field(25_000_000, ge=1_000, le=10**10, description="bytes of an archive brought in, packed")
    largest_unpacked: int = Field(500_000_000, ge=1_000, le=10**11, description="bytes of such an archive, unpacked")
    largest_list: int = Field(64_000_000, ge=1_000, le=10**10, description="bytes of a file with a list of edits")
    largest_download: int = Field(2_000_000_000, ge=0, le=10**12, description="bytes of a whole model to take away")

    # what all visitors share
    most_waiting: int = Field(16, ge=1, le=10_000, description="jobs that wait for the model")
    most_questions: int = Field(64, ge=1, le=10_000, description="short questions that wait for the model")
    patch_memory: int = Field(512_000_000, ge=0, le=10**12, description="bytes of patches kept in memory")
    hung_after: float = Field(600.0, gt=0, le=86_400, description="seconds without a sign until work counts as hung")
    database_patience: float = Field(5.0, gt=0, le=600, description="seconds a writer waits for another")
    bin_days: int = Field(30, ge=1, le=36_500, description="days a deleted session can be taken back")
    empty_days: int = Field(7, ge=1, le=36_500, description="days a session without an edit is kept")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags, then the environment, then the file."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, home_dir() / FILE)


@dataclass(frozen=True, slots=True)
class Shown:
    """One setting, for people."""

    name: str
    value: str  # masked where it is a secret
    origin: Origin
    meaning: str


def chosen() -> Settings:
    """The settings in force.

    Raises:
        BadSetting: naming the first that cannot be used, where it was found, and what it may be.
    """
    return _read(tuple((n, v) for n, v in os.environ.items() if n.startswith(PREFIX) or n == "DATABASE_URL"))


@lru_cache(maxsize=4)
def _read(environment: tuple[tuple[str, str], ...]) -> Settings:
    return read()


def read(flags: Mapping[str, Any] | None = None) -> Settings:
    """The settings as they would be with these flags; read afresh.

    Raises:
        BadSetting: see `chosen`.
    """
    given = dict(flags or {})
    for name in given:
        if name not in Settings.model_fields or name in SECRET:
            raise _no_flag(name)
    try:
        return Settings(**given)
    except ValidationError as error:
        raise _explained(error, given) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise BadSetting(
            f"{FILE} in the data folder cannot be read ({error}).",
            'Lines such as `most_probes = 500` or `password = "..."` were wanted.',
            "Mend that line, or move the file away.",
        ) from error


def export(flags: Mapping[str, Any]) -> None:
    """Hand flags on to the processes started from here: they see them in their environment."""
    for name, value in flags.items():
        os.environ[_variable(name)] = value if isinstance(value, str) else json.dumps(value)
    os.environ[FLAGS] = ",".join(sorted({*_flags(), *flags}))


def shown(flags: Mapping[str, Any] | None = None) -> list[Shown]:
    """Every setting with where it comes from."""
    settings, file = read(flags), _in_file()
    return [
        Shown(name, _words(name, getattr(settings, name)), _origin(name, flags or {}, file), field.description or "")
        for name, field in Settings.model_fields.items()
    ]


def unknown() -> list[str]:
    """Variables of the environment that look like a setting and are none."""
    known = {_variable(name) for name in Settings.model_fields} | OTHERS
    return sorted(name for name in os.environ if name.upper().startswith(PREFIX) and name.upper() not in known)


def _variable(name: str) -> str:
    return "DATABASE_URL" if name == "database_url" else f"{PREFIX}{name.upper()}"


def _flags() -> set[str]:
    return {name for name in os.environ.get(FLAGS, "").split(",") if name}


def _in_file() -> set[str]:
    path = home_dir() / FILE
    return set(tomllib.loads(path.read_text(encoding="utf-8"))) if path.is_file() else set()


def _origin(name: str, flags: Mapping[str, Any], file: set[str]) -> Origin:
    if name in flags:
        return "flag"
    if any(value and variable.upper() == _variable(name) for variable, value in os.environ.items()):
        return "flag" if name in _flags() else "environment"
    return "file" if {name, _variable(name)} & file else "default"


def _words(name: str, value: Any) -> str:
    if isinstance(value, SecretStr):
        return without_password(value.get_secret_value()) if name == "database_url" else "********"
    if isinstance(value, tuple):
        return ", ".join(value) or "none"
    if isinstance(value, bool) or value is None:
        return "none" if value is None else "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value) or "none"


def without_password(url: str) -> str:
    """A database's address without what opens it; nothing of one that cannot be read."""
    import sqlalchemy as sa

    try:
        found = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError):
        return "an address that cannot be read"
    return found.set(query={}).render_as_string(hide_password=True)


def _no_flag(name: str) -> BadSetting:
    if name in SECRET:
        place = f"Put it into the environment ({_variable(name)}) or into {FILE}."
        return BadSetting(f"{name} is no flag: everybody on this machine could read it.", "", place)
    return BadSetting(f"There is no setting {name[:60]!r}.", "", "`editcore doctor` lists them all.")


def _explained(error: ValidationError, flags: Mapping[str, Any]) -> BadSetting:
    """The first thing wrong, in words; a secret is not repeated."""
    first = error.errors(include_url=False)[0]
    name = str(first["loc"][0]).lower() if first["loc"] else ""
    if name not in Settings.model_fields:
        return BadSetting(f"{FILE} has a line {name[:60]!r}, which is no setting.", "", "`editcore doctor` lists them.")
    try:
        origin = _origin(name, flags, _in_file())
    except (ValueError, OSError):
        origin = "file"
    places = {"flag": "the command line", "environment": f"the environment, {_variable(name)}", "file": FILE}
    seen = "cannot be used" if name in SECRET else f"is {first['input']!r:.80}"
    default = Settings.model_fields[name].default
    back = f"; it is {_words(name, default)} then." if default else "."
    return BadSetting(
        f"The setting {name} {seen} (from {places.get(origin, origin)}).",
        f"{_wanted(name)}: {Settings.model_fields[name].description}.",
        f"Change it, or leave it out{back}",
    )


def _wanted(name: str) -> str:
    """What a setting may be, as a sentence's beginning."""
    field = Settings.model_fields[name]
    bounds = {type(bound).__name__: bound for bound in field.metadata}
    if field.annotation in (int, float):
        kind = "A whole number" if field.annotation is int else "A number"
        low = f"from {bounds['Ge'].ge:,}" if "Ge" in bounds else f"above {bounds['Gt'].gt:,}"
        return f"{kind} {low} to {bounds['Le'].le:,} was wanted"
    if field.annotation is bool:
        return "yes or no was wanted"
    if get_origin(field.annotation) is Literal:
        return f"{', '.join(filter(None, get_args(field.annotation)))} was wanted"
    return "At least 8 characters were wanted" if name == "password" else "Text was wanted"
