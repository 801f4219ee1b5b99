// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import { test } from "node:test";
import { Code } from "@connectrpc/connect";
import { RunState } from "../src/v1.js";
import { refusal } from "./refusals.js";
import { after, clientOf, gather, ScriptedRuns, throwing } from "./scripted_runs.js";
import { call, plain, RUN_ID, Story, withTools } from "./story.js";

const create = { assistantId: "asst_1" };
/** A run that has begun and never says anything more: the log does not end, and nothing after it is published. */
const endless = () => new Story().state(RunState.IN_PROGRESS).ask().state(RunState.COMPLETED).log;

test("leaving the loop cancels the call on the wire, and the run goes on", async (t) => {
  const runs = new ScriptedRuns(endless());
  const stream = (await clientOf(t, runs)).streamRun({ create });
  for await (const _ of stream) {
    assert.equal(runs.open, 1);
    break;
  }
  await runs.streams[0]?.closed;
  assert.equal(runs.open, 0);
  assert.deepEqual(runs.cancelled, []);
  assert.deepEqual(await stream.next(), { done: true, value: undefined });
});

test("leaving by an exception, by `await using` and by return() cancels the call, too", async (t) => {
  const runs = new ScriptedRuns(endless());
  const client = await clientOf(t, runs);
  await assert.rejects(async () => {
    for await (const _ of client.streamRun({ create })) {
      throw new Error("enough");
    }
  }, /enough/);
  {
    await using stream = client.streamRun({ create });
    await stream.next();
  }
  const stream = client.watchRun({ runId: RUN_ID });
  await stream.next();
  await stream.return();
  await Promise.all(runs.streams.map((served) => served.closed));
  assert.equal(runs.streams.length, 3);
  assert.equal(runs.open, 0);
});

test("return() ends a next() that waits", { timeout: 5_000 }, async (t) => {
  const runs = new ScriptedRuns(endless());
  const stream = (await clientOf(t, runs)).watchRun({ runId: RUN_ID, afterSequence: 3n });
  const waiting = stream.next();
  while (runs.open === 0) {
    await new Promise(setImmediate);
  }
  await stream.return();
  assert.deepEqual(await waiting, { done: true, value: undefined });
  await runs.streams[0]?.closed;
});

test("a hundred streams that are left leave nothing open", async (t) => {
  const runs = new ScriptedRuns(endless());
  const client = await clientOf(t, runs);
  const { signal } = new AbortController();
  const listeners: string[] = [];
  signal.addEventListener = ((name: string) => listeners.push(name)) as typeof signal.addEventListener;
  signal.removeEventListener = (() => listeners.pop()) as typeof signal.removeEventListener;
  const before = process.getActiveResourcesInfo().filter((kind) => kind === "Timeout").length;
  await Promise.all(
    Array.from({ length: 100 }, async () => {
      for await (const { sequence } of client.streamRun({ create, signal })) {
        if (sequence === 3n) {
          break;
        }
      }
    }),
  );
  await Promise.all(runs.streams.map((served) => served.closed));
  assert.deepEqual([runs.streams.length, runs.open, listeners.length], [100, 0, 0]);
  const timers = process.getActiveResourcesInfo().filter((kind) => kind === "Timeout").length;
  assert.ok(timers <= before, `${timers} timers are left`);
});

test("a signal ends a stream that waits, with its reason", async (t) => {
  const runs = new ScriptedRuns(endless());
  const stop = new AbortController();
  const stream = (await clientOf(t, runs)).streamRun({ create, signal: stop.signal });
  const reason = new Error("the user went away");
  await assert.rejects(async () => {
    for await (const { sequence } of stream) {
      if (sequence === 3n) {
        setImmediate(() => stop.abort(reason));
      }
    }
  }, reason);
  await runs.streams[0]?.closed;
});

test("a signal ends a stream while its reader is busy, and the reader learns of it", async (t) => {
  const runs = new ScriptedRuns(endless());
  const stop = new AbortController();
  const stream = (await clientOf(t, runs)).streamRun({ create, signal: stop.signal, cancelOnExit: true });
  await stream.next();
  stop.abort();
  await runs.streams[0]?.closed; // nobody asked for another event
  await assert.rejects(stream.next(), { name: "AbortError" });
  assert.deepEqual(runs.cancelled, [RUN_ID]);
});

test("a signal that was aborted before keeps everything from happening", async (t) => {
  const runs = new ScriptedRuns(endless());
  const client = await clientOf(t, runs);
  const signal = AbortSignal.abort();
  await assert.rejects(gather(client.streamRun({ create, signal, cancelOnExit: true })), { name: "AbortError" });
  await assert.rejects(client.waitRun({ runId: RUN_ID, signal }), { name: "AbortError" });
  assert.deepEqual([runs.streams.length, runs.waits, runs.cancelled.length], [0, 0, 0]);
});

test("a signal ends the wait between two streams", { timeout: 5_000 }, async (t) => {
  const runs = new ScriptedRuns(plain(), [after(1, throwing(refusal({ retryAfterMs: 60_000 })))]);
  const client = await clientOf(t, runs, { retry: { giveUpAfterMs: 600_000 } });
  const stop = new AbortController();
  const stream = client.streamRun({ create, signal: stop.signal });
  await stream.next();
  const waiting = stream.next();
  await runs.streams[0]?.closed;
  setTimeout(() => stop.abort(), 20); // by then it waits
  await assert.rejects(waiting, { name: "AbortError" });
  assert.equal(runs.streams.length, 1);
});

test("cancelOnExit cancels the run when the stream is left, not when it ends", async (t) => {
  const left = new ScriptedRuns(endless());
  for await (const _ of (await clientOf(t, left)).streamRun({ create, cancelOnExit: true })) {
    break;
  }
  assert.deepEqual(left.cancelled, [RUN_ID]);
  const ended = new ScriptedRuns(plain());
  await gather((await clientOf(t, ended)).streamRun({ create, cancelOnExit: true }));
  assert.deepEqual(ended.cancelled, []);
});

test("a run whose id is not known yet is found by its request id to be cancelled", async (t) => {
  const runs = new ScriptedRuns(plain(), [after(0, (stream) => stream.closed)]);
  const stream = (await clientOf(t, runs)).streamRun({ create, cancelOnExit: true });
  const waiting = stream.next();
  while (runs.open === 0) {
    await new Promise(setImmediate);
  }
  await stream.close();
  await waiting;
  assert.equal(runs.created[0]?.requestId, runs.streams[0]?.create?.requestId);
  assert.deepEqual(runs.cancelled, [RUN_ID]);
});

test("tools are told to stop when the stream is left, and their results are dropped", async (t) => {
  const runs = new ScriptedRuns(withTools(call("call_1", "f")));
  let stopped = false;
  let begin = () => {};
  const began = new Promise<void>((resolve) => {
    begin = resolve;
  });
  const tools = {
    f: (_: object, { signal }: { signal: AbortSignal }) => {
      begin();
      signal.addEventListener("abort", () => {
        stopped = true;
      });
      return new Promise(() => {});
    },
  };
  const stream = (await clientOf(t, runs)).streamRun({ create, tools });
  await stream.next();
  await stream.next();
  await began;
  await stream.close();
  assert.ok(stopped);
  assert.deepEqual(runs.submitted, []);
});

test("closing the client ends its streams and waits with an error", async (t) => {
  const runs = new ScriptedRuns(new Story().state(RunState.IN_PROGRESS).state(RunState.IN_PROGRESS).log);
  const client = await clientOf(t, runs);
  const stream = client.streamRun({ create });
  await stream.next();
  await stream.next();
  const next = stream.next();
  const wait = client.waitRun({ runId: RUN_ID });
  setImmediate(() => client.close());
  await assert.rejects(next, { name: "FamulusError", code: Code.Canceled });
  await assert.rejects(wait, { name: "FamulusError", code: Code.Canceled });
  await assert.rejects(client.runs.getRun({ runId: RUN_ID }), { code: Code.Canceled });
});
