"""Both sides prove that they know the secret, and derive one frame key per direction.

Owns the first bytes of a connection, as a pure state machine (the nonce comes from the caller). Must not know
frames, messages, sockets or where the secret is kept.

    initiator -> responder   hello:  magic, version, role, flags, nonce, digest of the TLS binding      (72 bytes)
    responder -> initiator   hello + proof = HMAC(secret, "responder" | both hellos)                   (104 bytes)
    initiator -> responder   proof = HMAC(secret, "initiator" | both hellos)                            (32 bytes)

The responder proves itself first, so that the side a person started (a worker, a status command) can say that the
keys differ. A peer of another protocol version gets our magic and version and nothing else: these six bytes keep
their place in every version. The TLS binding is compared only after the proofs held, so a wrong certificate and a
wrong key are told apart.
"""

from __future__ import annotations

import hmac
import struct
from hashlib import sha256

from taskvine_core.errors import HandshakeError, LocalProtocolError
from taskvine_core.protocol.messages import PROTOCOL_VERSION
from taskvine_core.records import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

NONCE_BYTES = 32
MAGIC = b"VINE"

#: Upper bound of what one side of a handshake sends; what is kept of a peer before it has proved itself.
MAX_HANDSHAKE_BYTES = 512

_PREFIX = struct.Struct(">4sH")  # magic, version: fixed for all versions
_REST = struct.Struct(">BB32s32s")  # role, flags, nonce, digest of the binding
_HELLO_BYTES = _PREFIX.size + _REST.size
_PROOF_BYTES = sha256().digest_size
_FLAG_MAC = 1

#: Role codes on the wire. Append only.
ROLE_CODES = {"worker": 1, "status": 2, "factory": 3, "data": 4, "manager": 16}
_ROLE_NAMES = {code: role for role, code in ROLE_CODES.items()}

#: Who may connect to whom: initiator roles by responder role.
ACCEPTED = {"manager": ("worker", "status", "factory", "data"), "worker": ("data",)}

_TLS_RECORD_TYPES = (0x15, 0x16)  # alert, handshake: what a TLS peer sends first


class SessionKeys(NamedTuple):
    """Result of a handshake: frame keys by direction, the peer's role, and whether frames carry a MAC."""

    send: bytes
    receive: bytes
    peer_role: str


def _hash(key: bytes, label: bytes, data: bytes = b"") -> bytes:
    return hmac.digest(key, label + b"\0" + data, "sha256")


class Handshake:
    """One side of the handshake.

    Args:
        secret: the shared key.
        role: what we are, a key of ROLE_CODES.
        initiator: True for the side that connected.
        nonce: 32 random bytes, never used before.
        binding: sha256 fingerprint of the TLS server certificate, b"" without TLS.
        mac: whether our frames carry a MAC; both sides must agree.
    """

    def __init__(self, *, secret: bytes, role: str, initiator: bool, nonce: bytes, binding: bytes = b"",
                 mac: bool = True) -> None:
        if role not in ROLE_CODES:
            raise LocalProtocolError(f"unknown role {role!r}", hint=f"one of {', '.join(ROLE_CODES)}")
        if len(nonce) != NONCE_BYTES or not secret:
            raise LocalProtocolError("a handshake needs a secret and a nonce of 32 bytes", hint="os.urandom(32)")
        self._secret = secret
        self._role = role
        self._initiator = initiator
        self._nonce = nonce
        self._binding = sha256(binding).digest()
        self._flags = _FLAG_MAC if mac else 0
        self._hello = _PREFIX.pack(MAGIC, PROTOCOL_VERSION) + _REST.pack(
            ROLE_CODES[role], self._flags, nonce, self._binding)
        self._buffer = b""
        self._peer_hello = b""
        self._refusal = ""
        self.keys: SessionKeys | None = None

    def start(self) -> bytes:
        """The initiator's first bytes; b"" for the responder."""
        return self._hello if self._initiator else b""

    def receive(self, data: bytes | memoryview) -> tuple[bytes, bytes]:
        """Take bytes of the peer.

        Returns:
            bytes to send back, and bytes that came after the end of the handshake (``keys`` is set then).

        Raises:
            HandshakeError: the peer is not who it should be; a sentence says why. A responder that met another
                version first returns the answer that tells the peer, and raises at the next call.
        """
        if self._refusal:
            raise HandshakeError(self._refusal, hint="install the same release on both sides")
        if self._initiator:
            return self._receive_answer(data)
        reply = b""
        if not self._peer_hello:
            data = self._collect(data, _HELLO_BYTES)
            if len(self._buffer) < _HELLO_BYTES and not self._refusal:
                return b"", b""
            if self._refusal:
                return _PREFIX.pack(MAGIC, PROTOCOL_VERSION), b""
            self._peer_hello, self._buffer = self._buffer, b""
            self._check_hello()
            reply = self._hello + self._proof(b"responder")
        return reply, self._receive_proof(data)

    def _collect(self, data: bytes | memoryview, size: int) -> memoryview:
        """Keep at most ``size`` bytes; look at magic and version as soon as they are here. Returns the rest."""
        view = memoryview(data)
        room = size - len(self._buffer)
        self._buffer += view[:room]
        if self._peer_hello:
            return view[room:]
        if self._buffer[:len(MAGIC)] != MAGIC[:len(self._buffer)]:
            self._refuse_stranger()
        if len(self._buffer) >= _PREFIX.size:
            _, version = _PREFIX.unpack_from(self._buffer)
            if version != PROTOCOL_VERSION:
                self._refusal = f"the peer speaks protocol version {version}, this side {PROTOCOL_VERSION}"
        return view[room:]

    def _refuse_stranger(self) -> NoReturn:
        if self._buffer[0] in _TLS_RECORD_TYPES:
            raise HandshakeError("the peer speaks TLS, this side does not", hint="use --ssl on both sides or none")
        raise HandshakeError("the peer does not speak this protocol", hint="check host and port")

    def _receive_answer(self, data: bytes | memoryview) -> tuple[bytes, bytes]:
        rest = self._collect(data, _HELLO_BYTES + _PROOF_BYTES)
        if self._refusal:
            raise HandshakeError(self._refusal, hint="install the same release on both sides")
        if len(self._buffer) < _HELLO_BYTES + _PROOF_BYTES:
            return b"", b""
        self._peer_hello, proof = self._buffer[:_HELLO_BYTES], self._buffer[_HELLO_BYTES:]
        self._check_hello()
        self._check_proof(b"responder", proof)
        self._check_agreement()
        proof = self._proof(b"initiator")
        self._derive()
        return proof, bytes(rest)

    def _receive_proof(self, data: bytes | memoryview) -> bytes:
        rest = self._collect(data, _PROOF_BYTES)
        if len(self._buffer) < _PROOF_BYTES:
            return b""
        self._check_proof(b"initiator", self._buffer)
        self._check_agreement()
        self._derive()
        return bytes(rest)

    def _check_hello(self) -> None:
        """What can be said before the peer has proved anything."""
        role, _, nonce, _ = _REST.unpack_from(self._peer_hello, _PREFIX.size)
        if hmac.compare_digest(nonce, self._nonce):
            raise HandshakeError("the peer sent our own greeting back", hint="something reflects the connection")
        if role not in _ROLE_NAMES:
            raise HandshakeError(f"the peer has an unknown role ({role})", hint="check host and port")

    def _transcript(self) -> bytes:
        ours, theirs = self._hello, self._peer_hello
        return ours + theirs if self._initiator else theirs + ours

    def _proof(self, who: bytes) -> bytes:
        return _hash(self._secret, b"taskvine " + who, self._transcript())

    def _check_proof(self, who: bytes, proof: bytes) -> None:
        if not hmac.compare_digest(self._proof(who), proof):
            raise HandshakeError(f"the {self._peer_role()} at the other end does not have the same key",
                                 hint="give both sides the same password file, or none when one user runs both")

    def _peer_role(self) -> str:
        return _ROLE_NAMES[self._peer_hello[_PREFIX.size]]

    def _check_agreement(self) -> None:
        """After the proofs: what an honest peer may have set up differently, or a man in the middle changed."""
        _, flags, _, binding = _REST.unpack_from(self._peer_hello, _PREFIX.size)
        peer = self._peer_role()
        initiator, responder = (self._role, peer) if self._initiator else (peer, self._role)
        if initiator not in ACCEPTED.get(responder, ()):
            raise HandshakeError(f"a {initiator} connected to a {responder}, which does not take that",
                                 hint="check host and port")
        if not hmac.compare_digest(binding, self._binding):
            raise HandshakeError(f"the TLS certificate seen here is not the one the {peer} knows of",
                                 hint="someone is in the middle, or the manager restarted with a new certificate")
        if flags != self._flags:
            raise HandshakeError(f"the {peer} wants another frame protection than this side",
                                 hint="use TLS on both sides or on none")

    def _derive(self) -> None:
        root = _hash(self._secret, b"taskvine session", self._transcript())
        outward, inward = _hash(root, b"to responder"), _hash(root, b"to initiator")
        if not self._initiator:
            outward, inward = inward, outward
        self.keys = SessionKeys(outward, inward, self._peer_role())
        self._secret = b""
