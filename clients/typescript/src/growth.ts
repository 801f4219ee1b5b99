// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

/** How deltas change messages and steps. */

import { create } from "@bufbuild/protobuf";
import type { ItemKind } from "./drafts.js";
import {
  type Message,
  type MessagePart,
  MessagePartSchema,
  MessageRole,
  MessageSchema,
  MessageState,
  RefusalPartSchema,
  type TextPart,
  TextPartSchema,
} from "./gen/famulus/v1/message_pb.js";
import type { RunEvent } from "./gen/famulus/v1/run_event_pb.js";
import { type RunStep, RunStepSchema, RunStepState, ToolCallBatchSchema } from "./gen/famulus/v1/run_step_pb.js";
import { type FunctionCall, FunctionCallSchema, type ToolCall, ToolCallSchema } from "./gen/famulus/v1/tool_pb.js";

// More than any message has. A damaged index must not cost memory.
const MOST_PARTS = 1_000;

/** Messages. */
export const MESSAGES: ItemKind<typeof MessageSchema> = {
  schema: MessageSchema,
  unfinished: (message) => message.state === MessageState.IN_PROGRESS,
  grow: growMessage,
};

/** Steps. */
export const STEPS: ItemKind<typeof RunStepSchema> = {
  schema: RunStepSchema,
  unfinished: (step) => step.state === RunStepState.IN_PROGRESS,
  grow: growStep,
};

function growMessage(message: Message, { event }: RunEvent): void {
  switch (event.case) {
    case "textDelta": {
      const part = partAt(message, event.value.partIndex);
      if (part) {
        textIn(part).text += event.value.text;
      }
      break;
    }
    case "refusalDelta": {
      const part = partAt(message, event.value.partIndex);
      if (part) {
        const before = part.part.case === "refusal" ? part.part.value.refusal : "";
        part.part = { case: "refusal", value: create(RefusalPartSchema, { refusal: before + event.value.refusal }) };
      }
      break;
    }
    case "annotationAdded": {
      const part = partAt(message, event.value.partIndex);
      if (part && event.value.annotation) {
        textIn(part).annotations.push(event.value.annotation);
      }
      break;
    }
  }
}

function growStep(step: RunStep, { event }: RunEvent): void {
  if (event.case === "toolCallDelta") {
    const call = functionIn(callIn(step, event.value.callId));
    call.name ||= event.value.name;
    call.argumentsJson += event.value.argumentsJsonDelta;
  }
}

/** The part at an index, made if need be; undefined where the index makes no sense. */
function partAt(message: Message, index: number): MessagePart | undefined {
  if (!(index >= 0 && index < MOST_PARTS)) {
    return undefined;
  }
  if (message.role === MessageRole.UNSPECIFIED) {
    message.role = MessageRole.ASSISTANT;
    message.state = MessageState.IN_PROGRESS;
  }
  while (message.content.length <= index) {
    message.content.push(create(MessagePartSchema));
  }
  return message.content[index];
}

function textIn(part: MessagePart): TextPart {
  if (part.part.case === "text") {
    return part.part.value;
  }
  const value = create(TextPartSchema);
  part.part = { case: "text", value };
  return value;
}

/** The call of a step, added if need be. */
function callIn(step: RunStep, callId: string): ToolCall {
  if (step.details.case !== "toolCalls") {
    step.details = { case: "toolCalls", value: create(ToolCallBatchSchema) };
  }
  const { toolCalls } = step.details.value;
  let call = toolCalls.find((each) => each.id === callId);
  if (call === undefined) {
    call = create(ToolCallSchema, { id: callId });
    toolCalls.push(call);
  }
  return call;
}

function functionIn(call: ToolCall): FunctionCall {
  if (call.call.case === "function") {
    return call.call.value;
  }
  const value = create(FunctionCallSchema);
  call.call = { case: "function", value };
  return value;
}
