// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

/** A scenario, as the conformance suite sends it. */

export interface Scenario {
  readonly name: string;
  readonly token?: string;
  readonly steps: readonly Step[];
}

export type Step = CallStep | StreamStep | WatchStep | RunToEndStep | WaitStep | PagesStep;

export interface CallStep {
  readonly op: "call";
  readonly method: string;
  /** Base64 of the serialized message, here and below. */
  readonly request: string;
  readonly timeout_ms?: number;
}

interface Streamed {
  readonly after_sequence?: number | string;
  readonly tools?: readonly string[];
  readonly tool_timeout_ms?: number;
  readonly leave_after?: number;
  readonly cancel_on_exit?: boolean;
  readonly cancel_after?: number;
}

export interface StreamStep extends Streamed {
  readonly op: "stream";
  readonly create: string;
}

export interface WatchStep extends Streamed {
  readonly op: "watch";
  readonly run_id: string;
}

export interface RunToEndStep {
  readonly op: "run_to_end";
  readonly create: string;
  readonly tools?: readonly string[];
  readonly tool_timeout_ms?: number;
}

export interface WaitStep {
  readonly op: "wait";
  readonly run_id: string;
}

export interface PagesStep {
  readonly op: "pages";
  readonly method: string;
  readonly request: string;
}
