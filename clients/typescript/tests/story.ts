// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

/** Event logs to tell in tests. */

import { create, type MessageInitShape } from "@bufbuild/protobuf";
import {
  MessageRole,
  MessageState,
  type RunEvent,
  RunEventSchema,
  RunState,
  RunStepState,
  type ToolCall,
  ToolCallSchema,
} from "../src/v1.js";

export const RUN_ID = "run_1";

type EventInit = MessageInitShape<typeof RunEventSchema>["event"];

/** Writes a log, one event per call. */
export class Story {
  readonly log: RunEvent[] = [];

  get last(): bigint {
    return this.log.at(-1)?.sequence ?? 0n;
  }

  tell(event: NonNullable<EventInit>, sequence = this.last + 1n): this {
    this.log.push(create(RunEventSchema, { sequence, event }));
    return this;
  }

  state(state: RunState, calls: ToolCall[] = []): this {
    const lastSequence = this.last + 1n;
    const run = { id: RUN_ID, state, lastSequence, requiredAction: { toolCalls: calls } };
    return this.tell({ case: "runStateChanged", value: { run } });
  }

  /** Starts a step that writes a message. */
  begin(number = 1): this {
    const step = messageStep(number, RunStepState.IN_PROGRESS);
    return this.tell({ case: "stepStarted", value: { step } }).tell({
      case: "messageStarted",
      value: { message: message(number, "", MessageState.IN_PROGRESS) },
    });
  }

  text(fragments: string[], number = 1): this {
    for (const text of fragments) {
      this.tell({ case: "textDelta", value: { messageId: `msg_${number}`, text } });
    }
    return this;
  }

  /** Ends the message and its step. */
  end(text: string, number = 1): this {
    const step = messageStep(number, RunStepState.COMPLETED);
    return this.tell({
      case: "messageCompleted",
      value: { message: message(number, text, MessageState.COMPLETED) },
    }).tell({ case: "stepCompleted", value: { step } });
  }

  takeover(attempt: number, discardsAfterSequence: bigint, base: bigint): this {
    return this.tell({ case: "attemptStarted", value: { attempt, discardsAfterSequence } }, base);
  }

  /** Asks for tool outputs. */
  ask(...calls: ToolCall[]): this {
    return this.tell({ case: "toolCallsRequested", value: { toolCalls: calls } }).state(
      RunState.REQUIRES_ACTION,
      calls,
    );
  }
}

export function message(number: number, text: string, state: MessageState) {
  const content = text ? [{ part: { case: "text" as const, value: { text } } }] : [];
  return { id: `msg_${number}`, runId: RUN_ID, role: MessageRole.ASSISTANT, content, state };
}

export function messageStep(number: number, state: RunStepState) {
  const details = { case: "messageCreation" as const, value: { messageId: `msg_${number}` } };
  return { id: `step_${number}`, runId: RUN_ID, position: number, state, details };
}

export function call(id: string, name: string, argumentsJson = "{}"): ToolCall {
  return create(ToolCallSchema, { id, call: { case: "function", value: { name, argumentsJson } } });
}

/** A run that writes one message. */
export function plain(): RunEvent[] {
  return new Story()
    .state(RunState.QUEUED)
    .state(RunState.IN_PROGRESS)
    .begin()
    .text(["Good", " ", "morning", ", ", "world"])
    .end("Good morning, world")
    .state(RunState.COMPLETED).log;
}

/** A run that was taken over in the middle of its second message, twice. */
export function takenOver(): RunEvent[] {
  const story = new Story().state(RunState.IN_PROGRESS).begin().text(["One"]).end("One");
  const committed = story.last;
  story.begin(2).text(["Two, ", "they"], 2);
  story.takeover(2, committed, 1_000n).begin(3).text(["Tw"], 3);
  story.takeover(3, committed, 2_000n).begin(4).text(["Two, ", "we say"], 4);
  return story.end("Two, we say", 4).state(RunState.COMPLETED).log;
}

/** A run that asks for outputs and then writes a message. */
export function withTools(...calls: ToolCall[]): RunEvent[] {
  return new Story()
    .state(RunState.IN_PROGRESS)
    .ask(...calls)
    .state(RunState.IN_PROGRESS)
    .begin()
    .text(["Do", "ne"])
    .end("Done")
    .state(RunState.COMPLETED).log;
}
