// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

/** What came of a run. */

import type { Message } from "./gen/famulus/v1/message_pb.js";
import { type Run, RunState } from "./gen/famulus/v1/run_pb.js";

const FINAL_STATES: ReadonlySet<RunState> = new Set([
  RunState.CANCELLED,
  RunState.FAILED,
  RunState.COMPLETED,
  RunState.INCOMPLETE,
  RunState.EXPIRED,
]);

/** Whether a run in this state has ended. */
export function isFinal(state: RunState): boolean {
  return FINAL_STATES.has(state);
}

/** The text parts of a message, joined. */
export function textOf(message: Message): string {
  return message.content.map(({ part }) => (part.case === "text" ? part.value.text : "")).join("");
}

/** The texts of messages, a blank line between two; those without text are left out. */
export function textOfAll(messages: readonly Message[]): string {
  return messages.map(textOf).filter(Boolean).join("\n\n");
}

/** A run that ended or needs action, and the messages it wrote. */
export class RunResult {
  constructor(
    readonly run: Run,
    readonly messages: readonly Message[],
  ) {}

  /** The text of all messages, a blank line between two. */
  get text(): string {
    return textOfAll(this.messages);
  }
}
