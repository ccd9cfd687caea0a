"""One node as a process: it claims what is overdue in a store, and writes down what its hook would do.

    python -m tests.support.store_worker URL NODE EFFECTS GATE LEASE [WHERE COUNT]

Waits for a byte in the pipe GATE, so that many begin at the same moment. Each effect is a line
`key attempt fence` of the file EFFECTS. Ends when nothing is left in the store. With WHERE (claimed,
effect or finished) it kills itself right after having done that COUNT times.
"""

import asyncio
import os
import signal
import sys
from pathlib import Path

from gateway.session_store import Claim, SessionStore
from gateway.stores import open_store

BATCH = 20


class Node:
    """What it is called, and when it dies."""

    def __init__(self, store: SessionStore, name: str, effects: Path, lease: float) -> None:
        self.store = store
        self.name = name
        self.lease = lease
        self.die = ("", 0)
        self._done = dict.fromkeys(("claimed", "effect", "finished"), 0)
        self._effects = os.open(effects, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    async def run(self) -> None:
        """Until nothing is left."""
        while any((await self.store.counts()).values()):
            if not await self.store.renew(self.name, self.lease):
                self.name += "'"
                await self.store.join(self.name, self.lease)
            claims = await self.store.claim_orphans(self.name, BATCH)
            for _ in claims:
                self._passed("claimed")
            for claim in claims:
                await self._clean(claim)
            if not claims:
                await asyncio.sleep(0.05)  # what others have claimed may become anyone's

    async def _clean(self, claim: Claim) -> None:
        line = f"{claim.session.id} {claim.attempt} {claim.fence}\n"
        os.write(self._effects, line.encode())
        self._passed("effect")
        await self.store.finish(self.name, claim)
        self._passed("finished")

    def _passed(self, where: str) -> None:
        self._done[where] += 1
        if (where, self._done[where]) == self.die:
            os.kill(os.getpid(), signal.SIGKILL)


async def main(url: str, name: str, effects: str, gate: str, lease: str, *die: str) -> None:
    store = open_store(url)
    await store.open()
    node = Node(store, name, Path(effects), float(lease))
    if die:
        node.die = (die[0], int(die[1]))
    print("ready", flush=True)
    os.read(os.open(gate, os.O_RDONLY), 1)
    await store.join(name, node.lease)
    await node.run()
    await store.leave(node.name)
    await store.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
