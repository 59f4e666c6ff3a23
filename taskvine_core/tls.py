"""TLS for links between machines: contexts, self-signed certificates, and pinning.

Owns how a certificate is made and recognised. Certificates are not verified against an authority: a client either
knows the fingerprint of the manager's certificate and accepts no other, or it takes the fingerprint it sees into
the handshake (``binding`` of Session), which fails when someone sits in the middle with another certificate.
Must not know the protocol beyond that.
"""

from __future__ import annotations

import datetime
import hmac
import os
import shutil
import ssl
import subprocess
import tempfile
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taskvine_core.errors import ConfigError, SecurityError

if TYPE_CHECKING:
    from collections.abc import Sequence

FINGERPRINT_BYTES = 32
KEY_FILE = "manager_key.pem"
CERT_FILE = "manager_cert.pem"

#: As the reference has it; a manager makes a new certificate at each start.
_VALID_DAYS = 365
_OPENSSL_TIMEOUT_S = 60.0
_COMMON_NAME = "taskvine manager"
_PRIVATE_FILE_MODE = 0o600
_PEM_BEGIN = "-----BEGIN CERTIFICATE-----"
_PEM_END = "-----END CERTIFICATE-----"


def _check_pin(context: ssl.SSLContext, der: bytes | None) -> None:
    expected = getattr(context, "fingerprint", None)
    if expected is None:
        return
    if der is None or not hmac.compare_digest(sha256(der).digest(), expected):
        raise SecurityError("the TLS certificate of the peer is not the expected one",
                            hint="someone is in the middle, or the manager restarted with a new certificate")


class _PinnedSocket(ssl.SSLSocket):
    """Refuses a peer with another certificate as the last step of the TLS handshake."""

    def do_handshake(self, block: bool = False) -> None:
        super().do_handshake(block)
        try:
            _check_pin(self.context, self.getpeercert(binary_form=True))
        except SecurityError:
            self.close()
            raise


class _PinnedObject(ssl.SSLObject):
    """The same for memory BIOs."""

    def do_handshake(self) -> None:
        super().do_handshake()
        _check_pin(self.context, self.getpeercert(binary_form=True))


class _PinnedContext(ssl.SSLContext):
    fingerprint: bytes | None = None
    sslsocket_class = _PinnedSocket
    sslobject_class = _PinnedObject


def server_context(key_file: str | os.PathLike[str], cert_file: str | os.PathLike[str]) -> ssl.SSLContext:
    """Context of a listener, TLS 1.2 or later.

    Args:
        key_file: PEM private key without a passphrase.
        cert_file: PEM certificate, with its chain if it has one.

    Raises:
        ConfigError: a file is missing, unreadable, or the two do not belong together.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        # Without the password argument OpenSSL would ask on the terminal for that of an encrypted key.
        context.load_cert_chain(cert_file, key_file, password=b"")
    except (OSError, ValueError) as error:  # SSLError is an OSError
        raise ConfigError(f"TLS key {key_file} and certificate {cert_file} cannot be used: {error}",
                          hint="both must be PEM, belong together, and the key must have no passphrase") from error
    return context


def server_context_of(certificate: bytes, key: bytes, directory: str | os.PathLike[str]) -> ssl.SSLContext:
    """``server_context`` from PEM bytes. OpenSSL reads files only: they lie in ``directory``, readable by us only, for
    as long as that takes.

    Raises:
        ConfigError: they cannot be used, or the directory cannot be written.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="tls-", dir=directory) as place:
            key_file, cert_file = Path(place) / KEY_FILE, Path(place) / CERT_FILE
            _write_private(key_file, key)
            cert_file.write_bytes(certificate)
            return server_context(key_file, cert_file)
    except OSError as error:
        raise ConfigError(f"no TLS key can be written in {directory}: {error.strerror}",
                          hint="free some space there") from error


def client_context(fingerprint: bytes | None) -> ssl.SSLContext:
    """Context of a connecting side, TLS 1.2 or later.

    Args:
        fingerprint: sha256 of the server's DER certificate; its sockets refuse any other with SecurityError when
            the TLS handshake ends. None: any certificate is taken, give ``peer_fingerprint`` to Session as binding.

    Raises:
        ConfigError: the fingerprint is not 32 bytes.
    """
    if fingerprint is not None and len(fingerprint) != FINGERPRINT_BYTES:
        raise ConfigError(f"a TLS fingerprint has {FINGERPRINT_BYTES} bytes, this one {len(fingerprint)}",
                          hint="give the sha256 of the certificate")
    context = _PinnedContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.fingerprint = fingerprint
    return context


def peer_fingerprint(connection: ssl.SSLSocket | ssl.SSLObject) -> bytes:
    """sha256 of the certificate a server showed us: the client's ``binding`` for Session.

    Raises:
        SecurityError: it showed none.
    """
    der = connection.getpeercert(binary_form=True)
    if not der:
        raise SecurityError("the TLS peer showed no certificate", hint="check host and port")
    return sha256(der).digest()


def fingerprint_of(certificate: bytes) -> bytes:
    """sha256 of the first certificate in PEM bytes.

    Raises:
        ConfigError: there is none.
    """
    text = certificate.decode("ascii", "replace")
    begin = text.find(_PEM_BEGIN)
    end = text.find(_PEM_END, max(0, begin))
    try:
        if begin < 0 or end < 0:
            raise ValueError("there is no PEM certificate")
        return sha256(ssl.PEM_cert_to_DER_cert(text[begin:end + len(_PEM_END)])).digest()
    except ValueError as error:
        raise ConfigError(f"not a TLS certificate: {error}", hint="give a PEM certificate") from error


def fingerprint(cert_file: str | os.PathLike[str]) -> bytes:
    """sha256 of the first certificate of a PEM file: the server's ``binding`` for Session.

    Raises:
        ConfigError: the file is missing or holds no certificate.
    """
    try:
        return fingerprint_of(Path(cert_file).read_bytes())
    except (OSError, ConfigError) as error:
        raise ConfigError(f"the TLS certificate {cert_file} cannot be read: {error}",
                          hint="give a PEM certificate") from error


def make_self_signed(directory: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Make a key (P-256, readable by us only) and a certificate signed with it, valid for a year.

    Args:
        directory: an existing directory; files of an earlier call are replaced.

    Returns:
        paths of key and certificate.

    Raises:
        ConfigError: neither the ``cryptography`` package nor the ``openssl`` command is there, or writing failed.
    """
    key_file, cert_file = Path(directory) / KEY_FILE, Path(directory) / CERT_FILE
    try:
        _write_private(key_file, b"")
        if not _make_with_package(key_file, cert_file):
            _make_with_command(key_file, cert_file)
    except ConfigError:
        key_file.unlink(missing_ok=True)
        raise
    except OSError as error:
        raise ConfigError(f"no TLS key can be written in {directory}: {error.strerror}",
                          hint="give a directory you can write") from error
    return key_file, cert_file


def make_pair(directory: str | os.PathLike[str]) -> tuple[bytes, bytes]:
    """A self-signed certificate and its key, as PEM bytes; nothing is left in ``directory``.

    Raises:
        ConfigError: as for ``make_self_signed``.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="tls-", dir=directory) as place:
            key_file, cert_file = make_self_signed(place)
            return cert_file.read_bytes(), key_file.read_bytes()
    except OSError as error:
        raise ConfigError(f"no TLS key can be written in {directory}: {error.strerror}",
                          hint="give a directory you can write") from error


def _write_private(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _PRIVATE_FILE_MODE)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


def _make_with_package(key_file: Path, cert_file: Path) -> bool:
    """False when the package is not installed (it is an extra)."""
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
    except ImportError:
        return False
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, _COMMON_NAME)])
    now = datetime.datetime.now(datetime.timezone.utc)
    builder = (x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
               .serial_number(x509.random_serial_number())
               .not_valid_before(now - datetime.timedelta(days=1))  # clocks of other machines may be behind
               .not_valid_after(now + datetime.timedelta(days=_VALID_DAYS)))
    certificate: Any = builder.sign(key, hashes.SHA256())
    _write_private(key_file, key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                                               serialization.NoEncryption()))
    cert_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return True


def _make_with_command(key_file: Path, cert_file: Path) -> None:
    """With the ``openssl`` command, into the key file that exists already with the right mode."""
    command = shutil.which("openssl")
    if command is None:
        raise ConfigError("no TLS certificate can be made: neither the Python package cryptography nor the command "
                          "openssl is installed", hint="pip install cryptography, or give ssl=(key, certificate)")
    arguments: Sequence[str] = (
        command, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-sha256",
        "-days", str(_VALID_DAYS), "-subj", f"/CN={_COMMON_NAME}", "-keyout", str(key_file), "-out", str(cert_file))
    try:
        done = subprocess.run(arguments, stdin=subprocess.DEVNULL, capture_output=True, timeout=_OPENSSL_TIMEOUT_S,
                              check=False)
    except subprocess.TimeoutExpired as error:
        raise ConfigError(f"openssl made no certificate in {_OPENSSL_TIMEOUT_S:.0f} s",
                          hint="pip install cryptography, or give ssl=(key, certificate)") from error
    if done.returncode != 0:
        said = done.stderr.decode("utf-8", "replace").strip()
        raise ConfigError(f"openssl could not make a certificate: {said}",
                          hint="pip install cryptography, or give ssl=(key, certificate)")
