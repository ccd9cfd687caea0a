// Gives each event a task of its own, in order.
// A page may attach its next handler after an `await`; two events in one task would pass it by.
// A MessageChannel and not a timer: nested timers are clamped to 4 ms, and to 1 s in hidden tabs.

/** @returns {(task: () => void) => void} */
export function createTasks(MessageChannel) {
  const { port1, port2 } = new MessageChannel();
  let queue = [];
  let next = 0;
  port1.onmessage = () => {
    const task = queue[next++];
    // Not shift(): it moves all that wait, and a slow page may have a hundred thousand.
    if (next === queue.length) {
      queue = [];
      next = 0;
    }
    task();
  };
  return (task) => {
    queue.push(task);
    port2.postMessage(null);
  };
}
