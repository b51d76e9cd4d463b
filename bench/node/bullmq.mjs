// BullMQ on Node: what src/serve.rs is to the peers in Rust. Answers on standard output what it is
// asked on standard input, one JSON object per line.

import { createInterface } from "node:readline";
import { Queue, Worker } from "bullmq";

const BYTES = 300;
const BULK = Number(process.env.BENCH_BULK ?? 1000);
const CONCURRENCY = Number(process.env.BENCH_CONCURRENCY ?? 100);
const LATEST_MS = 10_000;

const connection = { path: process.argv[2] };
const queue = new Queue("bench", { connection });

let worker;
let holds = false;
let ended = 0;
let begun = 0;
let starts;
let waiting;

function payload(n) {
  const bare = `{"n":${n},"padding":""}`.length;
  return { n, padding: "x".repeat(BYTES - bare) };
}

function range(jobs) {
  return Array.from({ length: jobs }, (_, n) => payload(n));
}

async function handle(job) {
  if (starts) starts[job.data.n] ??= performance.now();
  begun += 1;
  if (holds) {
    waiting?.check();
    await new Promise(() => {});
  }
  ended += 1;
  waiting?.check();
  return { ok: true };
}

function until(condition) {
  if (condition()) return Promise.resolve();
  return new Promise((resolve) => {
    waiting = { check: () => condition() && resolve() };
  });
}

async function work() {
  if (worker) return;
  worker = new Worker("bench", handle, { connection, concurrency: CONCURRENCY });
  worker.on("error", (error) => console.error(error.message));
  await worker.waitUntilReady();
}

const tasks = {
  async submit({ jobs }) {
    const payloads = range(jobs);
    const begun = performance.now();
    for (let first = 0; first < jobs; first += BULK) {
      const some = payloads.slice(first, first + BULK);
      await queue.addBulk(some.map((data) => ({ name: "noop", data })));
    }
    return { seconds: (performance.now() - begun) / 1000 };
  },
  async work({ total }) {
    await work();
    await until(() => ended >= total);
  },
  async pace({ jobs, every_us }) {
    await work();
    const target = ended + jobs;
    starts = [];
    const submitted = [];
    const submits = [];
    const begun = performance.now();
    for (const data of range(jobs)) {
      // Its timers do not wake up sooner than after a millisecond: what remains is not waited for.
      const due = begun + (data.n * every_us) / 1000;
      const rest = due - performance.now();
      if (rest > 0) await new Promise((resolve) => setTimeout(resolve, rest));
      submitted.push(performance.now());
      submits.push(queue.add("noop", data));
    }
    await Promise.all(submits);
    const late = new Promise((resolve) => setTimeout(resolve, LATEST_MS).unref());
    await Promise.race([until(() => ended >= target), late]);
    const times = starts;
    starts = undefined;
    const latencies = submitted.map((at, n) => (times[n] - at) * 1000);
    return { latencies_us: latencies.filter((us) => !Number.isNaN(us)) };
  },
  async hold() {
    holds = true;
    await work();
    await until(() => begun > 0);
  },
  async usage() {},
};

await queue.waitUntilReady();
for await (const line of createInterface({ input: process.stdin })) {
  const ask = JSON.parse(line);
  const started = performance.now();
  let answer;
  try {
    const done = await tasks[ask.do](ask);
    const { user, system } = process.cpuUsage();
    const seconds = (performance.now() - started) / 1000;
    answer = { seconds, cpu_us: user + system, ...done };
  } catch (error) {
    answer = { seconds: 0, cpu_us: 0, failed: String(error) };
  }
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}
process.exit(0);
