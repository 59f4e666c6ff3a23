"""The control protocol: messages, codec, frames, handshake, session. Bytes in, events out; no I/O."""
