"""The one tree of exceptions.

Owns every exception class this project raises on purpose. Must not import anything from the project.

    VineError
    ├── ConfigError            bad option, argument file, site file                    (also ValueError)
    ├── UsageError             the program used the API wrongly                        (also ValueError)
    ├── UsageTypeError         an argument of the wrong type                           (also TypeError)
    ├── UsageNameError         a name nobody knows where the published API says so     (also AttributeError)
    ├── StartError             the manager could not be created
    ├── FactoryStartError      the factory program ended at once                       (also RuntimeError)
    ├── SecurityError          wrong key, unsafe name, unsafe path
    │   └── HandshakeError     the peer could not prove that it knows the secret
    ├── ProtocolError          (never raised itself)
    │   ├── LocalProtocolError   we broke the rules
    │   └── RemoteProtocolError  the peer broke the rules
    ├── StateError             an illegal transition of a state machine: a defect of ours
    ├── TransferError          bytes did not arrive
    │   ├── SourceError          the sending side's fault: try another source
    │   ├── IntegrityError       what arrived is not what was announced
    │   └── DiskFullError        the receiving side has no room
    ├── SandboxError           a task's directory could not be made or collected
    ├── DiscoveryError         no manager could be found or the advertisement is broken
    └── BatchError             a batch system said no
        ├── BatchRejected        it will say no again: fix the request
        └── BatchUnavailable     it did not answer: nothing is known, try later

Every message says what happened, where, and what to do next.
"""

from __future__ import annotations


class VineError(Exception):
    """Root of the tree.

    Args:
        message: what happened and where, one sentence.
        hint: what the reader can do next; appended to the text.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(f"{message} ({hint})" if hint else message)
        self.message = message
        self.hint = hint


class ConfigError(VineError, ValueError):
    """A setting is wrong. Text names file, key and allowed values."""


class UsageError(VineError, ValueError):
    """A call is wrong. Text names the argument."""


class UsageTypeError(VineError, TypeError):
    """An argument has the wrong type. Text names the argument."""


class UsageNameError(VineError, AttributeError):
    """A name that does not exist, where the published API raises AttributeError. Text names the allowed ones."""


class StartError(VineError):
    """The manager could not be created: port in use, directory not writable, key file unusable."""


class FactoryStartError(VineError, RuntimeError):
    """The factory program ended right after it was started. Text has its last words."""


class SecurityError(VineError):
    """Something unsafe was refused."""


class HandshakeError(SecurityError):
    """The peer could not prove that it holds the same secret, or speaks another version."""


class ProtocolError(VineError):
    """Base of the two protocol faults; raise one of those."""


class LocalProtocolError(ProtocolError):
    """We tried to send something the protocol forbids."""


class RemoteProtocolError(ProtocolError):
    """The peer sent something the protocol forbids; the connection cannot be used further."""


class StateError(VineError):
    """A state machine was asked for a transition its table does not have."""


class TransferError(VineError):
    """An object could not be moved."""


class SourceError(TransferError):
    """The source could not deliver; another source may."""


class IntegrityError(TransferError):
    """The bytes that arrived do not match the announced hash or size."""


class DiskFullError(TransferError):
    """There is no room for the object here."""


class SandboxError(VineError):
    """A task sandbox could not be prepared or collected."""


class DiscoveryError(VineError):
    """No manager was found, or its advertisement cannot be read."""


class BatchError(VineError):
    """A batch system refused or failed.

    Args:
        message: what we wanted from it.
        said: the batch system's own words, kept verbatim.
        hint: what to do next.
    """

    def __init__(self, message: str, *, said: str = "", hint: str = "") -> None:
        super().__init__(f"{message}: {said}" if said else message, hint=hint)
        self.said = said


class BatchRejected(BatchError):
    """Asking again without a change is pointless."""


class BatchUnavailable(BatchError):
    """No answer: nothing is known about the jobs. Never shrink on this."""
