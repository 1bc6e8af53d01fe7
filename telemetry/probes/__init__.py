"""How a process measures itself: event loop lag, idle time, waits, spans."""
