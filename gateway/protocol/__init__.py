"""Engine.IO v4 and the session protocol, with no I/O.

Bytes go in, packets and verdicts come out. Nothing here imports asyncio, aiohttp, socket, time or
random: time is an argument, in monotonic seconds.
"""
