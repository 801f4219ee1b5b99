// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

/** The steps of a scenario. Each writes its lines. */

import { fromBinary } from "@bufbuild/protobuf";
import { type FamulusClient, FamulusError, type RunStream } from "@famulus/client";
import { type CreateRunRequest, CreateRunRequestSchema } from "@famulus/client/v1";
import type { CallStep, PagesStep, RunToEndStep, Step, StreamStep, WaitStep, WatchStep } from "./scenario.js";
import { call, decoded, encoded, methodOf } from "./stubs.js";
import { toolsOf } from "./tools.js";
import { endOfStream, errorLine, eventLine, resultLine } from "./transcript.js";

export type Write = (line: Record<string, unknown>) => void;

export async function run(client: FamulusClient, step: Step, write: Write): Promise<void> {
  try {
    switch (step.op) {
      case "call":
        return await makeCall(client, step, write);
      case "pages":
        return await turnPages(client, step, write);
      case "run_to_end":
        return await runToEnd(client, step, write);
      case "wait":
        return await waitRun(client, step, write);
      case "stream":
      case "watch":
        return await follow(client, step, write);
    }
  } catch (error) {
    write({ error: errorLine(FamulusError.from(error)) });
  }
}

async function makeCall(client: FamulusClient, step: CallStep, write: Write): Promise<void> {
  const method = methodOf(step.method);
  const response = await call(client, method, decoded(method.input, step.request), step.timeout_ms);
  write({ response: encoded(method.output, response) });
}

async function turnPages(client: FamulusClient, step: PagesStep, write: Write): Promise<void> {
  const method = methodOf(step.method);
  const request = decoded(method.input, step.request) as { pageToken?: string } & ReturnType<typeof decoded>;
  do {
    const page = (await call(client, method, request)) as unknown as Record<string, unknown>;
    const items = Object.values(page).find((value) => Array.isArray(value)) as { id: string }[] | undefined;
    write({ page: (items ?? []).map(({ id }) => id) });
    request.pageToken = String(page.nextPageToken);
  } while (request.pageToken);
}

async function runToEnd(client: FamulusClient, step: RunToEndStep, write: Write): Promise<void> {
  const create = createRun(step.create);
  write({ result: resultLine(await client.runToEnd({ create, ...toolOptions(step) })) });
}

async function waitRun(client: FamulusClient, step: WaitStep, write: Write): Promise<void> {
  write({ result: resultLine(await client.waitRun({ runId: step.run_id })) });
}

async function follow(client: FamulusClient, step: StreamStep | WatchStep, write: Write): Promise<void> {
  const options = {
    afterSequence: BigInt(step.after_sequence ?? 0),
    cancelOnExit: step.cancel_on_exit ?? false,
    ...toolOptions(step),
  };
  const stream =
    step.op === "stream"
      ? client.streamRun({ create: createRun(step.create), ...options })
      : client.watchRun({ runId: step.run_id, ...options });
  try {
    const left = await readOn(client, stream, step, write);
    write({ end: left ? "left" : "finished", ...endOfStream(stream) });
  } catch (error) {
    write({ end: "error", error: errorLine(FamulusError.from(error)), ...endOfStream(stream) });
  }
}

/** Writes the events; whether the stream was left before its end. */
async function readOn(
  client: FamulusClient,
  stream: RunStream,
  step: StreamStep | WatchStep,
  write: Write,
): Promise<boolean> {
  let count = 0;
  if (step.leave_after === 0) {
    return true;
  }
  for await (const event of stream) {
    write({ event: eventLine(event) });
    count += 1;
    if (count === step.cancel_after) {
      await client.runs.cancelRun({ runId: stream.view.runId });
    }
    if (count === step.leave_after) {
      return true;
    }
  }
  return false;
}

function createRun(base64: string): CreateRunRequest {
  return fromBinary(CreateRunRequestSchema, Buffer.from(base64, "base64"));
}

function toolOptions(step: { readonly tools?: readonly string[]; readonly tool_timeout_ms?: number }) {
  return { tools: toolsOf(step.tools), toolTimeoutMs: step.tool_timeout_ms };
}
