"""What the database of Leadsync remembers: one small module per table group, its queries named and described."""

import psycopg
from psycopg.adapt import Dumper
from psycopg.pq import Format

from leadsync.models import Digest


class _DigestDumper(Dumper):
    """Sends a Digest as a `uuid`."""

    format = Format.BINARY
    oid = psycopg.adapters.types["uuid"].oid

    def dump(self, obj: Digest) -> bytes:
        return bytes(obj)


class _DigestTextDumper(Dumper):
    """As text, which arrays are sent as."""

    oid = psycopg.adapters.types["uuid"].oid

    def dump(self, obj: Digest) -> bytes:
        return obj.hex().encode()


psycopg.adapters.register_dumper(Digest, _DigestTextDumper)
psycopg.adapters.register_dumper(Digest, _DigestDumper)
