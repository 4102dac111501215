"""A label server with a fault: on SQLite it commits every twentieth transaction only, and acknowledges all of them."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection
from stress.served_process import main

from prefloop.collection import label_database

COMMIT_EVERY = 20


class HastyDatabase(label_database.SqliteDatabase):
    _num_written = 0

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        with self._my_turn():
            if not self._writer.in_transaction():
                self._writer.begin()
            with self._writer.begin_nested():
                yield self._writer
            self._num_written += 1
            if self._num_written % COMMIT_EVERY == 0:
                self._writer.commit()


if __name__ == "__main__":
    label_database.SqliteDatabase = HastyDatabase
    main(sys.argv[1], int(sys.argv[2]))
