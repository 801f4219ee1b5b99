// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

/** Uses the packed client as another project would; nobody has to listen for it. */

import assert from "node:assert/strict";
import { create } from "@bufbuild/protobuf";
import { Code, FamulusClient, FamulusError, ToolError } from "@famulus/client";
import { ErrorReason, RunEventSchema, RunState } from "@famulus/client/v1";

const retry = { giveUpAfterMs: 10 };
await using client = new FamulusClient("http://127.0.0.1:1", { retry });
const tools = {
  get_weather: ({ city }: { city: string }) => {
    throw new ToolError(`no weather in ${city}`);
  },
};
const stream = client.streamRun({ create: { assistantId: "asst_1" }, tools });
const error: unknown = await stream.next().catch((caught: unknown) => caught);
assert.ok(error instanceof FamulusError);
assert.equal(error.code, Code.Unavailable);
assert.equal(error.reason, ErrorReason.UNSPECIFIED);
const event = create(RunEventSchema, { sequence: 1n, event: { case: "runStateChanged", value: { run: {} } } });
assert.ok(event.event.case === "runStateChanged" && event.event.value.run?.state === RunState.UNSPECIFIED);
