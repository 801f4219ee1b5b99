// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

/** Following a run: the place in its log, the view, and what to do when a stream breaks. No I/O. */

import { randomUUID } from "node:crypto";
import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { Code } from "@connectrpc/connect";
import { FamulusError, GapError } from "./errors.js";
import type { RunEvent } from "./gen/famulus/v1/run_event_pb.js";
import { type Run, RunState } from "./gen/famulus/v1/run_pb.js";
import { type CreateRunRequest, CreateRunRequestSchema } from "./gen/famulus/v1/run_service_pb.js";
import type { ToolCall } from "./gen/famulus/v1/tool_pb.js";
import { isFinal } from "./result.js";
import { Outage, type RetryPolicy } from "./retry.js";
import { RunView } from "./view.js";

const MOST_GAPS = 3; // in a row, at the same place

/** What is followed: a run that is started, or one that exists. */
export type Followed = { readonly create: CreateRunInit } | { readonly runId: string };

/** A CreateRunRequest, or what makes one. */
export type CreateRunInit = MessageInitShape<typeof CreateRunRequestSchema>;

/** One run, followed over any number of streams. */
export class Following {
  readonly view = new RunView();
  readonly #create: CreateRunRequest;
  readonly #outage: Outage;
  #lastSequence: bigint;
  #finished = false;
  #gaps = 0;
  #asked = false;

  /** `afterSequence` is the last event seen before. */
  constructor(followed: Followed, afterSequence: bigint, policy: RetryPolicy) {
    this.#create = repeatable("create" in followed ? followed.create : {});
    this.view.name("runId" in followed ? followed.runId : "");
    this.#lastSequence = afterSequence;
    this.#outage = new Outage(policy);
  }

  get lastSequence(): bigint {
    return this.#lastSequence;
  }

  get finished(): boolean {
    return this.#finished;
  }

  /** Whether there may be a run that goes on without us: it was asked for, and neither refused nor seen to end. */
  get mayGoOn(): boolean {
    return this.#asked && !this.#finished;
  }

  /**
   * The run: by its id as soon as that is known, because a request id is forgotten after a day, and would then start
   * another run.
   */
  target(): { runId: string } | { create: CreateRunRequest } {
    return this.view.runId ? { runId: this.view.runId } : { create: this.#create };
  }

  /** A stream is about to be opened. */
  joining(): void {
    this.#asked = true;
  }

  /** Takes in an event of a stream; false where it was seen before. Throws GapError where events are missing. */
  take(event: RunEvent): boolean {
    if (event.sequence <= this.#lastSequence) {
      return false;
    }
    const jumps = event.event.case === "attemptStarted" || event.event.case === "snapshot";
    if (event.sequence !== this.#lastSequence + 1n && !jumps) {
      throw new GapError(this.#lastSequence, event.sequence);
    }
    this.#lastSequence = event.sequence;
    this.view.apply(event);
    this.#finished = this.view.finished;
    this.#gaps = 0;
    this.#outage.over();
    return true;
  }

  /** A heartbeat came. */
  heard(): void {
    this.#outage.over();
  }

  /** The stream broke: milliseconds to wait before joining again. Throws the error where that is of no use. */
  lost(error: FamulusError): number {
    if (error instanceof GapError) {
      this.#gaps += 1;
    }
    if (this.#gaps >= MOST_GAPS) {
      throw error;
    }
    if (!error.transient && !this.view.runId) {
      this.#asked = false;
    }
    return this.#outage.delay(error);
  }

  /** The stream ended OK without a last event. Throws where the run, as it is now, has more to say. */
  ended(run: Run): void {
    if (!isFinal(run.state) || run.lastSequence > this.#lastSequence) {
      throw new FamulusError("the stream ended before the run did", { code: Code.Unavailable });
    }
    this.view.adopt(run);
    this.#finished = true;
  }
}

/** The request, with a request id: without one, each attempt would start another run. */
export function repeatable(init: CreateRunInit): CreateRunRequest {
  const request = create(CreateRunRequestSchema, init);
  return request.requestId ? request : { ...request, requestId: randomUUID() };
}

/** The function calls that a run waits for. */
export function openCalls(run: Run | undefined): ToolCall[] {
  return run?.state === RunState.REQUIRES_ACTION ? (run.requiredAction?.toolCalls ?? []).filter(isOpen) : [];
}

/** The function calls that an event says the run waits, or waited, for. */
export function requestedCalls({ event }: RunEvent): ToolCall[] {
  switch (event.case) {
    case "toolCallsRequested":
      return event.value.toolCalls.filter(isOpen);
    case "runStateChanged":
    case "snapshot":
      return openCalls(event.value.run);
    default:
      return [];
  }
}

function isOpen({ call }: ToolCall): boolean {
  return call.case === "function" && call.value.output === undefined && !call.value.problem;
}
