// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

/** What a run looks like after the events seen so far. */

import { Items } from "./drafts.js";
import type { Message } from "./gen/famulus/v1/message_pb.js";
import type { RunEvent, Snapshot } from "./gen/famulus/v1/run_event_pb.js";
import type { Run } from "./gen/famulus/v1/run_pb.js";
import type { RunStep } from "./gen/famulus/v1/run_step_pb.js";
import { MESSAGES, STEPS } from "./growth.js";
import { isFinal, RunResult, textOfAll } from "./result.js";

/**
 * A run with its messages, steps and reasoning, kept up to date by the events of the run.
 *
 * After an AttemptStarted, text that was shown but never stored is gone again; a Snapshot replaces everything.
 * A view of a stream that was joined in the middle lacks what came before, until facts or a Snapshot bring it.
 */
export class RunView {
  #run: Run | undefined;
  #attempt = 0;
  #runId = "";
  #reasoning: { sequence: bigint; text: string }[] = [];
  readonly #messages = new Items(MESSAGES);
  readonly #steps = new Items(STEPS);

  /** The run as of its latest change of state; undefined until an event brought it. */
  get run(): Run | undefined {
    return this.#run;
  }

  /** Id of the run; empty until an event brought it. */
  get runId(): string {
    return this.#runId;
  }

  /** Number of the latest attempt that was announced; 0 before a first takeover. */
  get attempt(): number {
    return this.#attempt;
  }

  /** The messages that the run wrote, the growing one included. Clone what you want to keep or change. */
  get messages(): Message[] {
    return this.#messages.all();
  }

  /** The steps of the run, the current one included. Clone what you want to keep or change. */
  get steps(): RunStep[] {
    return this.#steps.all().sort((one, other) => one.position - other.position);
  }

  /** The text of all messages, a blank line between two. */
  get text(): string {
    return textOfAll(this.messages);
  }

  /** The model's reasoning; only of runs created with `streamReasoning`. */
  get reasoning(): string {
    return this.#reasoning.map(({ text }) => text).join("");
  }

  /** Whether the run reached a final state. */
  get finished(): boolean {
    return this.#run !== undefined && isFinal(this.#run.state);
  }

  /** The run and its messages. Throws where no event brought the run yet. */
  result(): RunResult {
    if (this.#run === undefined) {
      throw new Error("no event brought the run yet");
    }
    return new RunResult(this.#run, this.messages);
  }

  /**
   * Takes in one event. Events must come in order, each once; unknown kinds change nothing.
   * @internal
   */
  apply(whole: RunEvent): void {
    const { sequence, event } = whole;
    switch (event.case) {
      case "runStateChanged":
        this.adopt(event.value.run);
        break;
      case "messageStarted":
        this.name(event.value.message?.runId);
        this.#messages.start(sequence, event.value.message);
        break;
      case "messageCompleted":
        this.name(event.value.message?.runId);
        this.#messages.finish(event.value.message);
        break;
      case "textDelta":
      case "refusalDelta":
      case "annotationAdded":
        this.#messages.extend(event.value.messageId, whole);
        break;
      case "stepStarted":
        this.name(event.value.step?.runId);
        this.#steps.start(sequence, event.value.step);
        break;
      case "stepCompleted":
        this.name(event.value.step?.runId);
        this.#steps.finish(event.value.step);
        break;
      case "toolCallDelta":
        this.#steps.extend(event.value.stepId, whole);
        break;
      case "reasoningDelta":
        this.#reasoning.push({ sequence, text: event.value.text });
        break;
      case "attemptStarted":
        this.#attempt = event.value.attempt;
        this.#discard(event.value.discardsAfterSequence);
        break;
      case "snapshot":
        this.#replace(sequence, event.value);
        break;
    }
  }

  /**
   * Takes over a newer state of the run.
   * @internal
   */
  adopt(run: Run | undefined): void {
    if (run === undefined) {
      return;
    }
    this.#run = run;
    this.name(run.id);
    if (this.finished) {
      this.#discard(0n); // what is not stored when the run ends never will be
    }
  }

  /**
   * Notes the id of the run.
   * @internal
   */
  name(runId: string | undefined): void {
    this.#runId ||= runId ?? "";
  }

  #discard(after: bigint): void {
    this.#messages.discard(after);
    this.#steps.discard(after);
    this.#reasoning = this.#reasoning.filter(({ sequence }) => sequence <= after);
  }

  #replace(sequence: bigint, snapshot: Snapshot): void {
    this.#messages.replace(sequence, snapshot.messages);
    this.#steps.replace(sequence, snapshot.steps);
    this.#reasoning = [];
    this.adopt(snapshot.run);
  }
}
