// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import { test } from "node:test";
import { create } from "@bufbuild/protobuf";
import { Code } from "@connectrpc/connect";
import { FamulusError, GapError } from "../src/index.js";
import { RunEventSchema, RunState } from "../src/v1.js";
import { refusal } from "./refusals.js";
import { after, clientOf, gather, ScriptedRuns, type Serving, throwing, whole } from "./scripted_runs.js";
import { message, plain, RUN_ID, Story, takenOver } from "./story.js";

const LOG = plain();
const ALL = LOG.map((event) => event.sequence);
const create_ = { assistantId: "asst_1" };

test("a stream gives every event once and ends after the last", async (t) => {
  const client = await clientOf(t, new ScriptedRuns(LOG));
  const stream = client.streamRun({ create: create_ });
  assert.deepEqual(await gather(stream), ALL);
  assert.equal(stream.lastSequence, ALL.at(-1));
  assert.equal(stream.view.text, "Good morning, world");
  assert.equal(stream.view.result().run.state, RunState.COMPLETED);
  assert.deepEqual(await stream.next(), { done: true, value: undefined });
});

test("the server ends the call, not the client, after the last event", async (t) => {
  let ended = false;
  const runs = new ScriptedRuns(LOG, [
    async function* (stream) {
      yield* whole(stream);
      ended = !stream.context.signal.aborted;
    },
  ]);
  await gather((await clientOf(t, runs)).streamRun({ create: create_ }));
  assert.ok(ended);
});

const BREAKS: [string, Serving][] = [
  ["UNAVAILABLE", after(4, throwing(refusal()))],
  ["a draining server", after(4, throwing(refusal({ reason: "SERVER_DRAINING", retryAfterMs: 5 })))],
  ["a slow consumer", after(4, throwing(refusal({ code: Code.Aborted, reason: "SLOW_CONSUMER" })))],
  ["expired credentials", after(4, throwing(refusal({ code: Code.Unauthenticated, reason: "CREDENTIALS_EXPIRED" })))],
  ["a call that a stopping server cut off", after(4, throwing(refusal({ code: Code.Canceled, message: "CANCELLED" })))],
  ["a proxy's words", after(4, throwing(refusal({ code: Code.Internal, message: "Received RST_STREAM" })))],
  ["a reset with INTERNAL_ERROR", after(4, (stream) => stream.reset(2, 4n))],
  ["a reset with REFUSED_STREAM", after(4, (stream) => stream.reset(7, 4n))],
  ["a reset with CANCEL", after(4, (stream) => stream.reset(8, 4n))],
  ["a lost connection", after(4, (stream) => stream.disconnect(4n))],
  ["OK before the end", after(4, () => {})],
];

for (const [what, serving] of BREAKS) {
  test(`a stream goes on by WatchRun after ${what}`, async (t) => {
    const runs = new ScriptedRuns(LOG, [serving]);
    const stream = (await clientOf(t, runs)).streamRun({ create: create_ });
    assert.deepEqual(await gather(stream, runs), ALL);
    assert.deepEqual(
      runs.streams.map(({ kind, after }) => [kind, after]),
      [
        ["stream", 0n],
        ["watch", 4n],
      ],
    );
  });
}

test("a stream that broke before any event is started again with the same request id", async (t) => {
  const runs = new ScriptedRuns(LOG, [after(0, throwing(refusal())), after(0, (stream) => stream.disconnect(0n))]);
  await gather((await clientOf(t, runs)).streamRun({ create: create_ }));
  const ids = runs.streams.map((stream) => stream.create?.requestId);
  assert.equal(ids.length, 3);
  assert.equal(new Set(ids).size, 1);
  assert.match(ids[0] ?? "", /^[0-9a-f-]{36}$/);
});

test("a request id of the caller is kept, and his request is not touched", async (t) => {
  const runs = new ScriptedRuns(LOG);
  const mine = { ...create_, requestId: "mine" };
  await gather((await clientOf(t, runs)).streamRun({ create: mine }));
  assert.equal(runs.streams[0]?.create?.requestId, "mine");
  assert.equal("requestId" in create_, false);
});

test("any other error ends the stream", async (t) => {
  const wrong = refusal({ code: Code.InvalidArgument, reason: "INVALID_FIELD", violations: [["create", "is wrong"]] });
  const runs = new ScriptedRuns(LOG, [after(0, throwing(wrong))]);
  const stream = (await clientOf(t, runs)).streamRun({ create: create_, cancelOnExit: true });
  await assert.rejects(gather(stream), {
    name: "FamulusError",
    code: Code.InvalidArgument,
    reasonName: "INVALID_FIELD",
  });
  assert.equal(runs.streams.length, 1);
  assert.deepEqual(runs.cancelled, []); // there is no run
});

test("UNKNOWN and CANCELLED of the service are no broken streams", async (t) => {
  for (const code of [Code.Unknown, Code.Canceled, Code.Internal]) {
    const runs = new ScriptedRuns(LOG, [after(2, throwing(refusal({ code, message: "a bug" })))]);
    await assert.rejects(gather((await clientOf(t, runs)).watchRun({ runId: RUN_ID })), { code });
  }
});

test("heartbeats keep a silent stream alive", async (t) => {
  const beats: Serving = async function* (stream) {
    for (let beat = 0; beat < 5; beat += 1) {
      await new Promise((resolve) => setTimeout(resolve, 150));
      yield [];
    }
    yield* whole(stream);
  };
  const runs = new ScriptedRuns(LOG, [beats]);
  const client = await clientOf(t, runs, { retry: { silenceMs: 600 } });
  assert.deepEqual(await gather(client.streamRun({ create: create_ })), ALL);
  assert.equal(runs.streams.length, 1);
});

test("a stream without heartbeats is broken, and its call is cancelled", async (t) => {
  const runs = new ScriptedRuns(LOG, [after(3, (stream) => stream.closed)]);
  const client = await clientOf(t, runs, { retry: { silenceMs: 200 } });
  assert.deepEqual(await gather(client.streamRun({ create: create_ })), ALL);
  await runs.streams[0]?.closed;
  assert.equal(runs.streams[1]?.after, 3n);
});

test("events that come again are dropped", async (t) => {
  const twice: Serving = async function* (stream) {
    for await (const event of stream.runs.published(stream.context.signal)) {
      yield [event, event];
    }
  };
  const runs = new ScriptedRuns(LOG, [after(5, throwing(refusal())), twice]);
  assert.deepEqual(await gather((await clientOf(t, runs)).streamRun({ create: create_ })), ALL);
});

const gap: Serving = async function* (stream) {
  for await (const event of stream.events()) {
    if (event.sequence !== 4n) {
      yield [event];
    }
  }
};

test("two gaps are filled by other streams", async (t) => {
  const runs = new ScriptedRuns(LOG, [gap, gap]);
  assert.deepEqual(await gather((await clientOf(t, runs)).streamRun({ create: create_ })), ALL);
  assert.deepEqual(
    runs.streams.map(({ after }) => after),
    [0n, 3n, 3n],
  );
});

test("three gaps at the same place are an error", async (t) => {
  const runs = new ScriptedRuns(LOG, [gap, gap, gap]);
  const stream = (await clientOf(t, runs)).streamRun({ create: create_ });
  await assert.rejects(gather(stream), (error: unknown) => {
    assert.ok(error instanceof GapError);
    assert.deepEqual([error.code, error.after, error.received], [Code.DataLoss, 3n, 5n]);
    return true;
  });
  assert.equal(stream.lastSequence, 3n);
});

test("a stream that ends OK after the last fact takes the final state over", async (t) => {
  const log = LOG.slice(0, -1);
  const runs = new ScriptedRuns(LOG, [after(log.length, () => {})]);
  const last = LOG.at(-1);
  if (last?.event.case === "runStateChanged" && last.event.value.run) {
    last.event.value.run.lastSequence = log.at(-1)?.sequence ?? 0n;
  }
  const stream = (await clientOf(t, runs)).streamRun({ create: create_ });
  assert.equal((await gather(stream)).length, log.length);
  assert.equal(stream.view.run?.state, RunState.COMPLETED);
  assert.equal(runs.lookups, 1);
});

test("an attempt discards what was not stored", async (t) => {
  const stream = (await clientOf(t, new ScriptedRuns(takenOver()))).streamRun({ create: create_ });
  const texts: string[] = [];
  for await (const { event } of stream) {
    if (event.case === "attemptStarted") {
      texts.push(stream.view.text);
    }
  }
  assert.deepEqual(texts, ["One", "One"]);
  assert.equal(stream.view.text, "One\n\nTwo, we say");
  assert.equal(stream.view.attempt, 3);
});

test("a snapshot may jump, and replaces the view", async (t) => {
  const story = new Story();
  story.tell(
    {
      case: "snapshot",
      value: {
        run: { id: RUN_ID, state: RunState.COMPLETED, lastSequence: 40n },
        messages: [message(7, "All of it", 2)],
      },
    },
    40n,
  );
  const runs = new ScriptedRuns(LOG, [
    after(4, throwing(refusal())),
    async function* () {
      yield story.log;
    },
  ]);
  const stream = (await clientOf(t, runs)).streamRun({ create: create_ });
  assert.deepEqual(await gather(stream), [1n, 2n, 3n, 4n, 40n]);
  assert.equal(stream.view.text, "All of it");
});

test("an event of an unknown kind changes nothing but the place", async (t) => {
  const log = [...LOG];
  log[4] = create(RunEventSchema, { sequence: 5n });
  const stream = (await clientOf(t, new ScriptedRuns(log))).streamRun({ create: create_ });
  assert.deepEqual(await gather(stream), ALL);
  assert.equal(stream.view.text, "Good morning, world");
});

test("after an outage that lasts the error is thrown", async (t) => {
  const runs = new ScriptedRuns(LOG, Array(1_000).fill(after(0, throwing(refusal({ message: "still down" })))));
  const client = await clientOf(t, runs, { retry: { giveUpAfterMs: 300 } });
  await assert.rejects(gather(client.watchRun({ runId: RUN_ID })), (error: unknown) => {
    assert.ok(error instanceof FamulusError);
    assert.equal(error.rawMessage, "still down");
    return true;
  });
  assert.ok(runs.streams.length > 2);
});

test("a client goes on when the server was not there at first", async () => {
  const { createServer } = await import("node:net");
  const probe = createServer().listen(0, "127.0.0.1");
  await new Promise((resolve) => probe.once("listening", resolve));
  const { port } = probe.address() as { port: number };
  await new Promise((resolve) => probe.close(resolve));
  const { FamulusClient } = await import("../src/index.js");
  await using nobody = new FamulusClient(`http://127.0.0.1:${port}`, { retry: { giveUpAfterMs: 20, jitter: 0 } });
  await assert.rejects(nobody.waitRun({ runId: RUN_ID }), { code: Code.Unavailable });
});
