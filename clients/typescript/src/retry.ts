// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

/** When to try again, and how long to wait before. No I/O. */

import { Code } from "@connectrpc/connect";
import type { FamulusError } from "./errors.js";

/** How a client bears outages. All times are in milliseconds. */
export interface RetryPolicy {
  /** The wait before the second attempt. 100 by default. */
  readonly initialDelayMs: number;
  /** Each wait is this many times the one before. 2 by default. */
  readonly multiplier: number;
  /** The longest wait, unless the service asks for more. 5,000 by default. */
  readonly maxDelayMs: number;
  /** By what fraction waits are made shorter or longer at random. 0.5 by default. */
  readonly jitter: number;
  /** After so long without progress the last error is thrown. 60,000 by default. */
  readonly giveUpAfterMs: number;
  /** A stream that is silent for so long counts as broken; the service sends heartbeats every 15 s. 45,000 by default. */
  readonly silenceMs: number;
}

const DEFAULTS: RetryPolicy = {
  initialDelayMs: 100,
  multiplier: 2,
  maxDelayMs: 5_000,
  jitter: 0.5,
  giveUpAfterMs: 60_000,
  silenceMs: 45_000,
};

/** The policy, with defaults for what is left out. Throws RangeError where it makes no sense. */
export function retryPolicy(own: Partial<RetryPolicy> = {}): RetryPolicy {
  const policy = { ...DEFAULTS, ...own };
  const times = [policy.initialDelayMs, policy.maxDelayMs, policy.giveUpAfterMs];
  if (!times.every((time) => time >= 0) || !(policy.silenceMs > 0)) {
    throw new RangeError("times must not be negative");
  }
  if (!(policy.multiplier >= 1) || !(policy.jitter >= 0 && policy.jitter <= 1)) {
    throw new RangeError("multiplier must be at least 1, jitter from 0 to 1");
  }
  return policy;
}

/** Counts failures in a row, for one call or stream. */
export class Outage {
  readonly #policy: RetryPolicy;
  readonly #clock: () => number;
  readonly #random: () => number;
  #since: number | undefined;
  #backoffMs: number;

  /** `clock` is in milliseconds and never goes back; `random` gives numbers from 0 to 1. */
  constructor(policy: RetryPolicy, clock: () => number = () => performance.now(), random: () => number = Math.random) {
    this.#policy = policy;
    this.#clock = clock;
    this.#random = random;
    this.#backoffMs = policy.initialDelayMs;
  }

  /** There was progress: the next failure is a first one. */
  over(): void {
    this.#since = undefined;
    this.#backoffMs = this.#policy.initialDelayMs;
  }

  /** Milliseconds to wait before the next attempt. Throws `error` where there must be none. */
  delay(error: FamulusError): number {
    if (!error.transient) {
      throw error;
    }
    const policy = this.#policy;
    const now = this.#clock();
    this.#since ??= now;
    const spread = policy.jitter * (2 * this.#random() - 1);
    // Never earlier than told; a little later, or all clients of a stopped replica would come at once.
    const delayMs = error.retryAfterMs
      ? Math.max(error.retryAfterMs, this.#backoffMs) * (1 + Math.abs(spread))
      : this.#backoffMs * (1 + spread);
    if (now + delayMs > this.#since + policy.giveUpAfterMs) {
      throw error;
    }
    this.#backoffMs = Math.min(this.#backoffMs * policy.multiplier, policy.maxDelayMs);
    return delayMs;
  }

  /** The same for a call that waits for something, where to run into the deadline of the call is no failure. */
  delayOfWait(error: FamulusError): number {
    if (error.code !== Code.DeadlineExceeded) {
      return this.delay(error);
    }
    this.over();
    return this.#backoffMs;
  }
}
