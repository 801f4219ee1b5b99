// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import { test } from "node:test";
import { Code } from "@connectrpc/connect";
import { ToolError, type Tools } from "../src/index.js";
import { RunState, type ToolCall, type ToolOutput } from "../src/v1.js";
import { refusal } from "./refusals.js";
import { after, clientOf, gather, ScriptedRuns, throwing } from "./scripted_runs.js";
import { call, plain, RUN_ID, withTools } from "./story.js";

const create = { assistantId: "asst_1" };

async function answersTo(t: Parameters<typeof clientOf>[0], calls: ToolCall[], tools: Tools, toolTimeoutMs = 10_000) {
  const runs = new ScriptedRuns(withTools(...calls));
  const client = await clientOf(t, runs);
  const result = await client.runToEnd({ create, tools, toolTimeoutMs, onToolError: () => {} });
  assert.equal(result.text, "Done");
  assert.equal(runs.submitted.length, 1);
  return (runs.submitted[0]?.toolOutputs ?? []).map(({ output, isError }: ToolOutput) => [output, isError]);
}

test("tools are answered in parallel, in one submission, in the order of the calls", async (t) => {
  let started = 0;
  let bothStarted = () => {};
  const both = new Promise<void>((resolve) => {
    bothStarted = resolve;
  });
  const meet = async ({ me }: { me: string }) => {
    started += 1;
    if (started === 2) {
      bothStarted();
    }
    await both;
    return { me };
  };
  const calls = [call("call_1", "meet", '{"me": "ä"}'), call("call_2", "meet", '{"me": "b"}')];
  assert.deepEqual(await answersTo(t, calls, { meet }), [
    ['{"me":"ä"}', false],
    ['{"me":"b"}', false],
  ]);
});

class Secret extends Error {}

const OUTCOMES: [string, Tools, string, string, boolean][] = [
  ["text is told as it is", { f: () => "plain" }, "{}", "plain", false],
  ["an empty text is no argument", { f: (args: object) => Object.keys(args).length }, "", "0", false],
  ["numbers are JSON", { f: ({ a, b }: { a: number; b: number }) => a + b }, '{"a":1,"b":2}', "3", false],
  ["nothing is null", { f: () => undefined }, "{}", "null", false],
  ["NUL and lone surrogates are replaced", { f: () => "a\0b\u{d800}" }, "{}", "a\u{fffd}b\u{fffd}", false],
  ["an unknown tool", {}, "{}", "there is no tool of this name", true],
  ["arguments that are not JSON", { f: () => 1 }, "{", "the arguments are not JSON", true],
  ["arguments that are no object", { f: () => 1 }, "[1]", "the arguments are not a JSON object", true],
  ["arguments that are null", { f: () => 1 }, "null", "the arguments are not a JSON object", true],
  ["a ToolError", { f: () => Promise.reject(new ToolError("no such city")) }, "{}", "no such city", true],
  ["another error", { f: () => Promise.reject(new Secret("password")) }, "{}", "the tool failed: Secret", true],
  ["an error that is thrown at once", { f: () => JSON.parse("{") }, "{}", "the tool failed: SyntaxError", true],
  ["a large result", { f: () => "x".repeat((1 << 20) + 1) }, "{}", "the tool's result is larger than 1 MiB", true],
  ["a result of wide letters", { f: () => "ä".repeat(600_000) }, "{}", "the tool's result is larger than 1 MiB", true],
  ["a bigint", { f: () => ({ n: 1n }) }, "{}", "the tool's result cannot be written as JSON", true],
];

for (const [what, tools, args, output, isError] of OUTCOMES) {
  test(`the model is told: ${what}`, async (t) => {
    assert.deepEqual(await answersTo(t, [call("call_1", "f", args)], tools), [[output, isError]]);
  });
}

test("what goes wrong in a tool is told to the process, unless it is for the model", async (t) => {
  const calls = [call("call_1", "fails"), call("call_2", "explains")];
  const secret = new Secret("password");
  const tools: Tools = {
    fails: () => Promise.reject(secret),
    explains: () => Promise.reject(new ToolError("the shop is closed")),
  };
  const client = await clientOf(t, new ScriptedRuns(withTools(...calls)));
  const log = t.mock.method(console, "error", () => {});
  await client.runToEnd({ create, tools });
  const logged = log.mock.calls.map(({ arguments: words }) => words);
  assert.deepEqual(logged, [["famulus: the tool fails failed, in the call call_1:", secret]]);
  const told: unknown[] = [];
  const other = await clientOf(t, new ScriptedRuns(withTools(...calls)));
  await other.runToEnd({ create, tools, onToolError: (...error) => told.push(error) });
  assert.deepEqual(told, [[secret, "fails", "call_1"]]);
});

test("what every object inherits is no tool", async (t) => {
  assert.deepEqual(await answersTo(t, [call("call_1", "toString")], {}), [["there is no tool of this name", true]]);
});

test("a tool that takes too long is told to stop, and knows its call", async (t) => {
  let told: unknown;
  let id = "";
  const tools: Tools = {
    f: (_, { signal, callId }) =>
      new Promise(() => {
        id = callId;
        signal.addEventListener("abort", () => {
          told = signal.reason;
        });
      }),
  };
  const answers = await answersTo(t, [call("call_1", "f")], tools, 200);
  assert.deepEqual(answers, [["the tool took longer than 0.2 seconds", true]]);
  assert.equal(id, "call_1");
  assert.ok(told instanceof ToolError);
});

test("events go on coming while tools run", async (t) => {
  let release = () => {};
  const released = new Promise<void>((resolve) => {
    release = resolve;
  });
  const runs = new ScriptedRuns(withTools(call("call_1", "f")));
  const stream = (await clientOf(t, runs)).streamRun({ create, tools: { f: () => released } });
  for await (const { event } of stream) {
    if (event.case === "runStateChanged" && event.value.run?.state === RunState.REQUIRES_ACTION) {
      release(); // that came after the tool had been called
    }
  }
  assert.equal(runs.submitted.length, 1);
});

test("a call is answered once, however often the stream resumes", async (t) => {
  let times = 0;
  const f = () => {
    times += 1;
    return "ok";
  };
  const log = withTools(call("call_1", "f"));
  const repeats = async function* (stream: { runs: ScriptedRuns; context: { signal: AbortSignal } }) {
    for await (const event of stream.runs.published(stream.context.signal)) {
      yield [event];
    }
  };
  const runs = new ScriptedRuns(log, [after(2, throwing(refusal())), repeats]);
  await gather((await clientOf(t, runs)).streamRun({ create, tools: { f } }));
  assert.equal(times, 1);
  assert.equal(runs.submitted.length, 1);
});

test("calls of a run that is joined later are answered", async (t) => {
  const runs = new ScriptedRuns(withTools(call("call_1", "f")));
  const stream = (await clientOf(t, runs)).watchRun({ runId: RUN_ID, afterSequence: 3n, tools: { f: () => "late" } });
  await gather(stream);
  assert.equal(runs.submitted[0]?.toolOutputs[0]?.output, "late");
});

test("a tool does not run for a call that was answered long ago", async (t) => {
  const runs = new ScriptedRuns(withTools(call("call_1", "f")));
  runs.publish();
  const f = () => assert.fail("called again");
  await gather((await clientOf(t, runs)).watchRun({ runId: RUN_ID, tools: { f } }));
  assert.deepEqual(runs.submitted, []);
});

test("a submission is repeated through outages", async (t) => {
  const runs = new ScriptedRuns(withTools(call("call_1", "f")));
  runs.refusals.push(refusal(), refusal({ reason: "STORE_UNAVAILABLE", retryAfterMs: 3 }));
  await gather((await clientOf(t, runs)).watchRun({ runId: RUN_ID, tools: { f: () => 1 } }));
  assert.equal(runs.submitted.length, 1);
});

for (const reason of ["RUN_NOT_WAITING", "TOOL_OUTPUT_CONFLICT", "RUN_EXPIRED"]) {
  test(`a submission refused with ${reason} is no error`, async (t) => {
    const runs = new ScriptedRuns(withTools(call("call_1", "f")));
    runs.refusals.push(refusal({ code: Code.FailedPrecondition, reason }));
    const stream = (await clientOf(t, runs)).watchRun({ runId: RUN_ID, tools: { f: () => 1 } });
    for await (const { sequence } of stream) {
      if (sequence === 3n) {
        runs.publish(); // what somebody else submitted
      }
    }
    assert.equal(stream.view.text, "Done");
  });
}

test("a submission refused otherwise ends the stream with that error", async (t) => {
  const runs = new ScriptedRuns(withTools(call("call_1", "f")));
  runs.refusals.push(refusal({ code: Code.PermissionDenied, reason: "PERMISSION_DENIED" }));
  const stream = (await clientOf(t, runs)).watchRun({ runId: RUN_ID, tools: { f: () => 1 } });
  await assert.rejects(gather(stream), { code: Code.PermissionDenied });
});

test("without tools nobody answers", async (t) => {
  const runs = new ScriptedRuns(withTools(call("call_1", "f")));
  const result = await (await clientOf(t, runs)).runToEnd({ create });
  assert.equal(result.run.state, RunState.REQUIRES_ACTION);
  assert.equal(runs.streams.length, 0);
});

test("a run without calls ends with its text", async (t) => {
  const result = await (await clientOf(t, new ScriptedRuns(plain()))).runToEnd({ create, tools: {} });
  assert.equal(result.text, "Good morning, world");
});
