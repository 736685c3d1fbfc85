"""The one door to the model: submit, poll, cancel, ask, probe; plain data in and out, and no torch on this side.

Importing starts nothing. `LocalEngine` keeps a worker process; `InlineEngine` does the same work on a thread.
"""

from editcore.engine.client import LocalEngine
from editcore.engine.contract import Engine, Health, JobState, JobStatus, Sessions, SessionState
from editcore.engine.inline import InlineEngine
from editcore.home import home_dir, new_session
from editcore.records import Opening

__all__ = [
    "Engine",
    "Health",
    "InlineEngine",
    "JobState",
    "JobStatus",
    "LocalEngine",
    "Opening",
    "SessionState",
    "Sessions",
    "home_dir",
    "new_session",
]
