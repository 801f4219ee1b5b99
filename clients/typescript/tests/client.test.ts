// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import { test } from "node:test";
import { Code, ConnectError } from "@connectrpc/connect";
import { FamulusError } from "../src/index.js";
import { ErrorReason, RunState } from "../src/v1.js";
import { refusal } from "./refusals.js";
import { clientOf, ScriptedRuns } from "./scripted_runs.js";
import { plain, RUN_ID, withTools } from "./story.js";

const create = { assistantId: "asst_1" };

test("an error tells its reason, metadata, violations and when to come back", async (t) => {
  const runs = new ScriptedRuns(plain());
  runs.refusals.push(
    refusal({
      code: Code.ResourceExhausted,
      message: "slow down",
      reason: "RATE_LIMITED",
      metadata: { limit: "tenant.requests_per_minute", __proto__x: "1" },
      violations: [["create.ttl", "is too long"]],
      retryAfterMs: 1_500,
    }),
  );
  const error = await (await clientOf(t, runs)).runToEnd({ create }).catch((caught: unknown) => caught);
  assert.ok(error instanceof FamulusError);
  assert.equal(error.message, "RESOURCE_EXHAUSTED / RATE_LIMITED: slow down");
  assert.equal(error.rawMessage, "slow down");
  assert.equal(error.codeName, "RESOURCE_EXHAUSTED");
  assert.equal(error.reason, ErrorReason.RATE_LIMITED);
  assert.deepEqual(error.metadata, { limit: "tenant.requests_per_minute", __proto__x: "1" });
  assert.deepEqual(error.violations, [{ field: "create.ttl", description: "is too long" }]);
  assert.equal(error.retryAfterMs, 1_500);
  assert.equal(error.transient, false);
  assert.ok(error.cause instanceof ConnectError);
});

test("a reason that this client does not know keeps its name", () => {
  const error = FamulusError.from(refusal({ reason: "OF_TOMORROW" }));
  assert.equal(error.reason, ErrorReason.UNSPECIFIED);
  assert.equal(error.reasonName, "OF_TOMORROW");
});

test("names that objects inherit, and numbers, are no reasons", () => {
  for (const reason of ["toString", "1"]) {
    assert.equal(FamulusError.from(refusal({ reason })).reason, ErrorReason.UNSPECIFIED);
  }
});

test("reasons of other domains are left out", () => {
  const error = FamulusError.from(refusal({ reason: "RATE_LIMITED", domain: "example.com", metadata: { a: "b" } }));
  assert.deepEqual([error.reason, error.reasonName, error.metadata], [ErrorReason.UNSPECIFIED, "", {}]);
});

test("damaged details are left out", () => {
  const error = new ConnectError("broken", Code.NotFound);
  error.details.push({ type: "google.rpc.ErrorInfo", value: Uint8Array.of(0x0a, 0xff) });
  assert.equal(FamulusError.from(error).message, "NOT_FOUND: broken");
});

test("the code of a cancelled call is spelt as gRPC does", () => {
  assert.equal(FamulusError.from(new ConnectError("gone", Code.Canceled)).codeName, "CANCELLED");
  assert.equal(FamulusError.from(new ConnectError("gone", Code.DeadlineExceeded)).codeName, "DEADLINE_EXCEEDED");
});

test("waitRun gives run, messages and text", async (t) => {
  const result = await (await clientOf(t, new ScriptedRuns(plain()))).waitRun({ runId: RUN_ID });
  assert.equal(result.run.state, RunState.COMPLETED);
  assert.equal(result.text, "Good morning, world");
  assert.equal(result.messages.length, 1);
});

test("waitRun goes on through outages, and when its deadline comes first", async (t) => {
  const runs = new ScriptedRuns(withTools().slice(0, 1));
  runs.refusals.push(refusal());
  const client = await clientOf(t, runs, { retry: { silenceMs: 30 } });
  const waiting = client.waitRun({ runId: RUN_ID });
  while (runs.waits < 4) {
    await new Promise(setImmediate);
  }
  runs.log.push(...plain().slice(-1));
  runs.publish();
  assert.equal((await waiting).run.state, RunState.COMPLETED);
});

test("runToEnd without tools creates the run once, with a request id", async (t) => {
  const runs = new ScriptedRuns(plain());
  runs.refusals.push(refusal(), refusal());
  const result = await (await clientOf(t, runs)).runToEnd({ create });
  assert.equal(result.text, "Good morning, world");
  assert.equal(runs.created.length, 1);
  assert.ok(runs.created[0]?.requestId);
});
