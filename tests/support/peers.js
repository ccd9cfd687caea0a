// Names the Engine.IO protocol that the installed npm client speaks, to show that it can be loaded.
import { protocol } from "engine.io-client";

console.log(`engine.io-client ${protocol}`);
