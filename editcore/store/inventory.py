"""What a store holds, counted without opening it for work: nothing is made, migrated or repaired. Knows no session."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import sqlalchemy as sa

from editcore.settings import without_password
from editcore.store.database import FILE, url_of
from editcore.store.tables import edits, sessions


def inventory(home: Path) -> dict[str, str | int]:
    """The database and its schema, sessions, edits, and bytes of patches; a database that does not answer says why."""
    url = url_of(home)
    own = url.startswith("sqlite:///") and Path(url.removeprefix("sqlite:///")) == home / FILE
    found: dict[str, str | int] = {"database": str(home / FILE) if own else without_password(url)}
    patches = [path.stat().st_size for path in (home / "patches").rglob("*") if path.is_file()]
    if own and not (home / FILE).exists():
        found["database"] = f"{home / FILE} (not made yet)"
        return {**found, "bytes of patches": sum(patches)}
    engine = sa.create_engine(f"sqlite:///file:{quote(str(home / FILE))}?mode=ro&uri=true" if own else url)
    try:
        with engine.connect() as at:
            found["schema version"] = str(at.execute(sa.text("SELECT version_num FROM alembic_version")).scalar())
            for name, table in (("sessions", sessions), ("edits", edits)):
                found[name] = int(at.execute(sa.select(sa.func.count()).select_from(table)).scalar() or 0)
    except (sa.exc.SQLAlchemyError, OSError) as error:
        found["database"] = f"{found['database']} (does not answer: {type(error).__name__})"
    finally:
        engine.dispose()
    return {**found, "bytes of patches": sum(patches)}
