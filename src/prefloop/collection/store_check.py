"""Is the store sound? The database's own check, and everything that follows from the record, worked out anew."""

from sqlalchemy import Connection, text

MAX_SHOWN = 5

_QUESTIONS = (
    (
        "{num} pairs have more labels than the project asks for, or a wrong count of them",
        """SELECT p.pair_id FROM pairs p LEFT JOIN (SELECT pair_ref, count(*) AS num FROM current_labels
        WHERE kind = 'regular' AND choice <> 'skip' GROUP BY pair_ref) l ON l.pair_ref = p.id
        WHERE coalesce(l.num, 0) <> p.num_labels OR coalesce(l.num, 0) > :k""",
    ),
    (
        "{num} pairs are open though they have enough labels, or closed though they need more",
        """SELECT pair_id FROM pairs WHERE coalesce(open_position, -1) <>
        CASE WHEN gold_choice IS NULL AND num_labels < :k THEN position ELSE -1 END""",
    ),
    (
        "{num} people have two labels that stand for one pair",
        """SELECT a.name FROM current_labels l JOIN accounts a ON a.id = l.account_ref
        GROUP BY a.name, l.pair_ref, l.kind = 'repeat' HAVING count(*) > 1""",
    ),
    (
        "{num} submission ids occur more than once",
        "SELECT submission_id FROM events GROUP BY submission_id HAVING count(*) > 1",
    ),
    (
        "{num} tasks do not follow their events",
        """SELECT t.task_id FROM tasks t LEFT JOIN current_labels l ON l.task_ref = t.id
        LEFT JOIN (SELECT task_ref, max(revision) AS revision FROM events GROUP BY task_ref) e ON e.task_ref = t.id
        WHERE coalesce(l.id, -1) <> coalesce(t.label_event, -1)
        OR coalesce(l.choice, '') <> coalesce(t.label_choice, '') OR coalesce(e.revision, 0) <> t.revision""",
    ),
    (
        "{num} events are not about the pair, person or kind of their task, or name the other side",
        """SELECT e.submission_id FROM events e JOIN tasks t ON t.id = e.task_ref
        WHERE e.pair_ref <> t.pair_ref OR e.account_ref <> t.account_ref OR (e.kind = 'repeat') <> t.is_repeat
        OR coalesce(e.displayed_choice, '') <> CASE WHEN e.swapped AND e.choice = 'left' THEN 'right'
        WHEN e.swapped AND e.choice = 'right' THEN 'left' ELSE coalesce(e.choice, '') END""",
    ),
    (
        "{num} events take back a label that was not there",
        """SELECT e.submission_id FROM events e WHERE e.event = 'undo' AND coalesce((SELECT b.event FROM events b
        WHERE b.task_ref = e.task_ref AND b.revision < e.revision ORDER BY b.revision DESC LIMIT 1), '') <> 'label'""",
    ),
    (
        "{num} project has a wrong count of pairs",
        """SELECT 'the project' FROM project
        WHERE num_regular_pairs <> (SELECT count(*) FROM pairs WHERE gold_choice IS NULL)
        OR num_open_pairs <> (SELECT count(*) FROM pairs WHERE open_position IS NOT NULL)""",
    ),
)


def problems(connection: Connection, *, annotators_per_pair: int) -> list[str]:
    """Every kind of fault found, one sentence each, with examples; empty when the store is sound."""
    found: list[str] = []
    if connection.dialect.name == "sqlite":
        lines = connection.exec_driver_sql("PRAGMA integrity_check").scalars().all()
        found += [f"SQLite: {line}" for line in lines if line != "ok"]
        orphans = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
        found += [f"a row of {row[0]} points to a row of {row[2]} that is not there" for row in orphans]
    for sentence, question in _QUESTIONS:
        asked = {"k": annotators_per_pair} if ":k" in question else {}
        names = connection.execute(text(question), asked).scalars().all()
        if names:
            examples = ", ".join(repr(name) for name in names[:MAX_SHOWN])
            found.append(f"{sentence.format(num=len(names))}: {examples}{', ...' if len(names) > MAX_SHOWN else ''}")
    return found
