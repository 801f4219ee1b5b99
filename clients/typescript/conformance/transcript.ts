// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

/** Events, results and errors as the lines of a transcript say them. */

import { type FamulusError, type RunResult, type RunStream, textOf } from "@famulus/client";
import {
  type Message,
  MessageState,
  RunErrorCode,
  type RunEvent,
  RunState,
  type RunStep,
  RunStepState,
  type ToolCall,
} from "@famulus/client/v1";

type Line = Record<string, unknown>;

export function eventLine({ sequence, event }: RunEvent): Line {
  const kind = event.case?.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`) ?? "unknown";
  return { sequence: Number(sequence), kind, ...eventFields(event) };
}

function eventFields(event: RunEvent["event"]): Line {
  switch (event.case) {
    case "runStateChanged": {
      const run = event.value.run;
      return { state: stateName(run?.state), error: run?.error ? RunErrorCode[run.error.code] : "" };
    }
    case "stepStarted":
    case "stepCompleted":
      return { state: RunStepState[event.value.step?.state ?? 0], calls: callsOf(event.value.step) };
    case "messageStarted":
    case "messageCompleted":
      return { state: MessageState[event.value.message?.state ?? 0], text: optionalText(event.value.message) };
    case "textDelta":
      return { part_index: event.value.partIndex, text: event.value.text };
    case "refusalDelta":
      return { part_index: event.value.partIndex, refusal: event.value.refusal };
    case "reasoningDelta":
      return { text: event.value.text };
    case "annotationAdded":
      return { part_index: event.value.partIndex };
    case "toolCallDelta":
      return { name: event.value.name, arguments: event.value.argumentsJsonDelta };
    case "toolCallsRequested":
      return { names: event.value.toolCalls.map((call) => functionOf(call).name) };
    case "toolOutputReceived": {
      const [call] = event.value.toolCalls;
      const { output, outputIsError } = functionOf(call);
      return { output, is_error: outputIsError };
    }
    case "retryScheduled":
      return { reason: RunErrorCode[event.value.reason] };
    case "attemptStarted":
      return { attempt: event.value.attempt, discards_after: Number(event.value.discardsAfterSequence) };
    case "snapshot":
      return { state: stateName(event.value.run?.state), texts: event.value.messages.map(textOf) };
    default:
      return {};
  }
}

export function endOfStream({ lastSequence, view }: RunStream): Line {
  return {
    last_sequence: Number(lastSequence),
    view: {
      state: view.run ? stateName(view.run.state) : "",
      text: view.text,
      attempt: view.attempt,
      messages: view.messages.length,
      steps: view.steps.length,
    },
  };
}

export function resultLine({ run, messages, text }: RunResult): Line {
  return {
    state: stateName(run.state),
    error: run.error ? RunErrorCode[run.error.code] : "",
    text,
    messages: messages.length,
    prompt_tokens: Number(run.usage?.promptTokens ?? 0),
    completion_tokens: Number(run.usage?.completionTokens ?? 0),
  };
}

export function errorLine(error: FamulusError): Line {
  return {
    code: error.codeName,
    reason: error.reasonName,
    message: error.rawMessage,
    metadata: error.metadata,
    violations: error.violations,
    retry_after: error.retryAfterMs !== undefined,
  };
}

function stateName(state: RunState | undefined): string {
  return RunState[state ?? RunState.UNSPECIFIED];
}

function optionalText(message: Message | undefined): string {
  return message ? textOf(message) : "";
}

function callsOf(step: RunStep | undefined): Line[] {
  const calls = step?.details.case === "toolCalls" ? step.details.value.toolCalls : [];
  return calls.map((call) => {
    const { name, argumentsJson, output } = functionOf(call);
    return { name, arguments: argumentsJson, output };
  });
}

function functionOf(call: ToolCall | undefined) {
  if (call?.call.case !== "function") {
    return { name: "", argumentsJson: "", output: "", outputIsError: false };
  }
  const { name, argumentsJson, output = "", outputIsError } = call.call.value;
  return { name, argumentsJson, output, outputIsError };
}
