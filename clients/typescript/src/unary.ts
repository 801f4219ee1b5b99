// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

/** Unary calls that are safe to repeat, repeated while the service cannot be reached. */

import type { CallOptions } from "@connectrpc/connect";
import { FamulusError } from "./errors.js";
import { Outage, type RetryPolicy } from "./retry.js";
import { sleep } from "./waiting.js";

/** How a call is repeated. */
export interface Sending {
  readonly policy: RetryPolicy;
  /** Ends the attempts; the call then rejects with the reason. */
  readonly signal: AbortSignal;
  /** The deadline of each attempt, in milliseconds. */
  readonly timeoutMs?: number;
}

/** Calls until there is an answer. Throws FamulusError. */
export async function send<T>(attempt: (options: CallOptions) => Promise<T>, sending: Sending): Promise<T> {
  const outage = new Outage(sending.policy);
  return repeat(attempt, sending, (error) => outage.delay(error));
}

/** Calls something that waits, as often as it takes: to run into the deadline is no failure. Throws FamulusError. */
export async function sendWait<T>(attempt: (options: CallOptions) => Promise<T>, sending: Sending): Promise<T> {
  const outage = new Outage(sending.policy);
  return repeat(attempt, sending, (error) => outage.delayOfWait(error));
}

async function repeat<T>(
  attempt: (options: CallOptions) => Promise<T>,
  { signal, timeoutMs }: Sending,
  delayMs: (error: FamulusError) => number,
): Promise<T> {
  for (;;) {
    signal.throwIfAborted();
    try {
      return await attempt(timeoutMs === undefined ? { signal } : { signal, timeoutMs });
    } catch (error) {
      signal.throwIfAborted();
      await sleep(delayMs(FamulusError.from(error)), signal);
    }
  }
}
