"""Bytes in, events out: framing, handshake, messages. No sockets, no roles beyond a label."""
