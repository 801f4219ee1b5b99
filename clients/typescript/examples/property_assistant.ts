// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

/**
 * The property assistant: answers a question with two tools over a file of properties.
 *
 *     make example ARGS='[URL [MODEL [QUESTION]]]'
 */

import { ConnectError } from "@connectrpc/connect";
import { FamulusClient, FamulusError } from "@famulus/client";
import { MessageRole, RunState, type ToolCall } from "@famulus/client/v1";
import { DECLARATIONS, propertyTools } from "./property_tools.js";

const PROPERTIES = new URL("../../../examples/properties.json", import.meta.url); // from build/examples

async function ask(
  url = "http://127.0.0.1:7461",
  model = "scripted",
  question = "Call search_properties for flats in Bern.",
): Promise<RunState> {
  await using client = new FamulusClient(url);
  const tools = await propertyTools(PROPERTIES);
  const { assistant } = await client.assistants.ensureAssistant({
    assistant: { name: "Property assistant", model, instructions: "Answer in one sentence.", tools: DECLARATIONS },
  });
  const stream = client.streamRun({
    create: {
      target: { case: "newThread", value: { userId: "user-1" } },
      assistantId: assistant?.id ?? "",
      additionalMessages: [
        { role: MessageRole.USER, content: [{ part: { case: "text", value: { text: question } } }] },
      ],
    },
    tools,
    cancelOnExit: true,
  });
  for await (const { event } of stream) {
    switch (event.case) {
      case "textDelta":
        process.stdout.write(event.value.text);
        break;
      case "toolCallsRequested":
      case "toolOutputReceived":
        process.stdout.write(event.value.toolCalls.map(described).join(""));
        break;
      case "attemptStarted":
      case "snapshot": // what was printed before may not hold any more
        process.stdout.write(`\n${stream.view.text}`);
        break;
    }
  }
  return stream.view.result().run.state;
}

function described({ call }: ToolCall): string {
  if (call.case !== "function") {
    return "";
  }
  const { name, argumentsJson, output } = call.value;
  return output === undefined ? `[calls ${name}(${argumentsJson})]\n` : `[${name} returned ${output}]\n`;
}

try {
  process.stdout.write(`\n${RunState[await ask(...process.argv.slice(2))]}\n`);
} catch (error) {
  // The stubs throw an error of their own.
  if (!(error instanceof FamulusError || error instanceof ConnectError)) {
    throw error;
  }
  process.stderr.write(`${FamulusError.from(error).message}\n`);
  process.exitCode = 1;
}
