"""Compresses and encrypts what Leadsync keeps of leads: snapshots, payloads, operation records.

Format: version (1 byte), key id (4 bytes), nonce (12 bytes), AES-256-GCM of zstd level 1. The context (the place
where a blob is kept) is authenticated with it, so a blob that was damaged, cut or moved does not open.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os

import zstandard
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from leadsync.errors import ConfigError, SnapshotError

VERSION = b"\x01"
KEY_BYTES = 32
HOW_TO_MAKE = "python -c 'import base64, os; print(base64.b64encode(os.urandom(32)).decode())'"


class Sealer:
    """Seals with the first key and opens with any of them, so that keys can be rotated.

    `keys` is base64 of 32 bytes each, separated by commas, newest first. Not thread-safe: one per thread.
    """

    def __init__(self, keys: str) -> None:
        self._ciphers: dict[bytes, AESGCM] = {}
        names: list[bytes] = []
        for text in filter(None, (part.strip() for part in keys.split(","))):
            try:
                key = base64.b64decode(text, validate=True)
            except binascii.Error:
                key = b""
            if len(key) != KEY_BYTES:
                raise ConfigError(f"the encryption key is not base64 of {KEY_BYTES} bytes; make one: {HOW_TO_MAKE}")
            self._ciphers[hashlib.blake2b(key, digest_size=4).digest()] = AESGCM(key)
            names.append(hashlib.blake2b(key, person=b"leadsync names").digest())
        if not self._ciphers:
            raise ConfigError(f"there is no encryption key: set LEADSYNC_ENCRYPTION_KEY; make one: {HOW_TO_MAKE}")
        self._current, self._names = next(iter(self._ciphers)), names[0]
        self._compressor = zstandard.ZstdCompressor(level=1)
        self._decompressor = zstandard.ZstdDecompressor()

    def seal(self, data: bytes, context: str) -> bytes:
        """The sealed form of `data`, bound to `context`."""
        nonce = os.urandom(12)
        head = VERSION + self._current
        body = self._ciphers[self._current].encrypt(nonce, self._compressor.compress(data), head + context.encode())
        return head + nonce + body

    def open(self, blob: bytes, context: str) -> bytes:
        """What was sealed under `context`. Raises SnapshotError when it is damaged or its key is not known."""
        head, nonce, body = blob[:5], blob[5:17], blob[17:]
        cipher = self._ciphers.get(head[1:])
        if head[:1] != VERSION or cipher is None:
            raise SnapshotError(f"{context}: sealed with a key that LEADSYNC_ENCRYPTION_KEY does not list")
        try:
            return self._decompressor.decompress(cipher.decrypt(nonce, body, head + context.encode()))
        except (InvalidTag, zstandard.ZstdError):
            raise SnapshotError(f"{context}: damaged: it does not pass its checksum") from None

    def name(self, secret: str) -> str:
        """What may stand for a secret in the open: who lacks the newest key can't try which secret it was made of."""
        return hashlib.blake2b(secret.encode(), key=self._names, digest_size=16).hexdigest()
