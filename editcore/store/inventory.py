"""What a store holds, counted without opening it for work: nothing is made, migrated or repaired. Knows no session."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import sqlalchemy as sa

from editcore.errors import EngineError
from editcore.settings import without_password
from editcore.store.database import connected, url_of
from editcore.store.tables import edits, sessions


def inventory(home: Path) -> dict[str, str | int]:
    """The database and its schema, sessions, edits, and bytes of patches; a database that does not answer says why."""
    patches = [path.stat().st_size for path in home.glob("patches*/**/*") if path.is_file()]
    found: dict[str, str | int] = {"database": "", "bytes of patches": sum(patches)}
    try:
        url = url_of(home)
        file = Path(str(url.database)) if url.drivername == "sqlite" else None
        shown = found["database"] = str(file or without_password(url.render_as_string(hide_password=False)))
        if file is not None and not file.exists():
            return {**found, "database": f"{file} (not made yet)"}
        engine = sa.create_engine(f"sqlite:///file:{quote(str(file))}?mode=ro&uri=true") if file else connected(url)
    except EngineError as error:
        return {**found, "database": f"{found['database']} ({error})".strip()}
    try:
        with engine.connect() as at:
            found["schema version"] = str(at.execute(sa.text("SELECT version_num FROM alembic_version")).scalar())
            for name, table in (("sessions", sessions), ("edits", edits)):
                found[name] = int(at.execute(sa.select(sa.func.count()).select_from(table)).scalar() or 0)
    except (sa.exc.SQLAlchemyError, OSError) as error:
        found["database"] = f"{shown} (does not answer: {type(error).__name__})"
    finally:
        engine.dispose()
    return found
