"""Messages between processes: what they say, their encoding, and the sockets that carry them."""
