"""Bytes to packets: what turns HTTP requests and websocket frames into calls of a transport."""
