"""The tables of a label project, the same on SQLite and PostgreSQL.

`events` is the record: rows are added and never changed or removed, and triggers see to it. `tasks` says who was given
which pair, until when, and which event stands for it now; `pairs` counts the labels that stand. Both follow from the
record and are kept beside it so that giving out a pair costs a look-up; `LabelStore.check` compares them with it.

Times are seconds since 1970. JSON is kept as text, because nothing ever searches inside it.
"""

from sqlalchemy import (
    DDL,
    Boolean,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    column,
    event,
    table,
)

SCHEMA_VERSION = 2
APPLICATION_ID = 0x5072664C
"""In the header of every SQLite file of ours ("PrfL"), where the `file` command looks for it too."""

METADATA = MetaData()

project = Table(
    "project",
    METADATA,
    Column("id", Integer, CheckConstraint("id = 1"), primary_key=True, autoincrement=False),
    Column("schema_version", Integer, nullable=False),
    Column("settings", Text, nullable=False),
    Column("num_regular_pairs", Integer, nullable=False),
    Column("num_open_pairs", Integer, nullable=False),
    Column("created_at", Double, nullable=False),
)

accounts = Table(
    "accounts",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("name", Text, nullable=False),
    Column("name_key", Text, nullable=False, unique=True),
    Column("role", Text, CheckConstraint("role IN ('admin', 'annotator')"), nullable=False),
    Column("active", Boolean, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("password_hash", Text),
    Column("link_hash", Text, unique=True),
    Column("num_tasks", Integer, nullable=False, default=0),
)

sessions = Table(
    "sessions",
    METADATA,
    Column("token_hash", Text, primary_key=True),
    Column("account_ref", ForeignKey("accounts.id"), nullable=False, index=True),
    Column("created_at", Double, nullable=False),
    Column("last_seen_at", Double, nullable=False),
)

pairs = Table(
    "pairs",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("pair_id", Text, nullable=False, unique=True),
    Column("content", Text, nullable=False),
    Column("gold_choice", Text),
    Column("margin", Double),
    Column("disagreement", Double),
    Column("chosen_by", Text, nullable=False),
    Column("position", Integer, nullable=False, unique=True),
    # The position while the pair still needs a label, else NULL: the index then holds the open pairs and no others.
    Column("open_position", Integer, index=True),
    Column("num_labels", Integer, CheckConstraint("num_labels >= 0"), nullable=False, default=0),
)
Index(
    "ix_pairs_gold",
    pairs.c.position,
    sqlite_where=pairs.c.gold_choice.is_not(None),
    postgresql_where=pairs.c.gold_choice.is_not(None),
)

tasks = Table(
    "tasks",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("task_id", Text, nullable=False, unique=True),
    Column("pair_ref", ForeignKey("pairs.id"), nullable=False, index=True),
    Column("account_ref", ForeignKey("accounts.id"), nullable=False),
    Column("kind", Text, CheckConstraint("kind IN ('regular', 'gold', 'repeat')"), nullable=False),
    Column("is_repeat", Boolean, nullable=False),
    Column("swapped", Boolean, nullable=False),
    Column("sequence", Integer, nullable=False),
    Column("expires_at", Double, nullable=False),
    Column("revision", Integer, nullable=False, default=0),
    Column("label_event", Integer),
    Column("label_choice", Text),
    UniqueConstraint("account_ref", "pair_ref", "is_repeat"),
    # Holds a person's tasks without an answer side by side (NULL), and their latest answer last.
    Index("ix_tasks_account_label_event", "account_ref", "label_event"),
)

events = Table(
    "events",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("submission_id", Text, nullable=False, unique=True),
    Column("event", Text, nullable=False),
    Column("task_ref", ForeignKey("tasks.id"), nullable=False),
    Column("pair_ref", ForeignKey("pairs.id"), nullable=False),
    Column("account_ref", ForeignKey("accounts.id"), nullable=False),
    Column("kind", Text, nullable=False),
    Column("choice", Text, CheckConstraint("choice IN ('left', 'right', 'tie', 'both_bad', 'skip')")),
    Column("displayed_choice", Text),
    Column("swapped", Boolean, nullable=False),
    Column("strength", Integer, CheckConstraint("strength BETWEEN 1 AND 4")),
    Column("rationale", Text, nullable=False),
    Column("opened_at", Double, nullable=False),
    Column("submitted_at", Double, nullable=False),
    Column("received_at", Double, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("client_version", Text, nullable=False),
    Column("chosen_by", Text, nullable=False),
    Column("details", Text, nullable=False),
    CheckConstraint("(event = 'label' AND choice IS NOT NULL) OR (event = 'undo' AND choice IS NULL)"),
    # Two answers to one task at the same moment would want the same revision: only one of them gets it.
    UniqueConstraint("task_ref", "revision"),
    sqlite_autoincrement=True,
)

current_labels = table("current_labels", *(column(one.name, one.type) for one in events.columns))
"""A view: the last event of each task, where that is a label."""

_DDL_OF_SQLITE = (
    "CREATE TRIGGER events_keep_their_words BEFORE UPDATE ON events "
    "BEGIN SELECT RAISE(ABORT, 'label events are append-only'); END",
    "CREATE TRIGGER events_stay BEFORE DELETE ON events BEGIN SELECT RAISE(ABORT, 'label events are append-only'); END",
    f"PRAGMA application_id = {APPLICATION_ID}",
)
_DDL_OF_POSTGRESQL = (
    "CREATE FUNCTION events_are_append_only() RETURNS trigger LANGUAGE plpgsql AS "
    "$$ BEGIN RAISE EXCEPTION 'label events are append-only'; END $$",
    "CREATE TRIGGER events_keep_their_words BEFORE UPDATE OR DELETE ON events "
    "FOR EACH ROW EXECUTE FUNCTION events_are_append_only()",
    "CREATE TRIGGER events_stay BEFORE TRUNCATE ON events FOR EACH STATEMENT EXECUTE FUNCTION events_are_append_only()",
)
_VIEW = (
    "CREATE VIEW current_labels AS SELECT * FROM events WHERE event = 'label' AND NOT EXISTS "
    "(SELECT 1 FROM events AS later WHERE later.task_ref = events.task_ref AND later.revision > events.revision)"
)

for _statement in _DDL_OF_SQLITE:
    event.listen(METADATA, "after_create", DDL(_statement).execute_if(dialect="sqlite"))
for _statement in _DDL_OF_POSTGRESQL:
    event.listen(METADATA, "after_create", DDL(_statement).execute_if(dialect="postgresql"))
event.listen(METADATA, "after_create", DDL(_VIEW))
