// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

/** Waiting that ends early, and leaves neither timers nor listeners behind. Times are in milliseconds. */

import { setTimeout as pause } from "node:timers/promises";

/** Waits; rejects with the reason of the signal as soon as that is aborted. */
export async function sleep(delayMs: number, signal: AbortSignal): Promise<void> {
  signal.throwIfAborted();
  try {
    await pause(delayMs, undefined, { signal });
  } catch {
    throw signal.reason;
  }
}

/** The outcome of a promise; rejects with what `tooLate` makes if there is none in time. */
export async function within<T>(limitMs: number, promise: Promise<T>, tooLate: () => Error): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const expiry = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(tooLate()), limitMs);
  });
  try {
    return await Promise.race([promise, expiry]);
  } finally {
    clearTimeout(timer);
  }
}

/**
 * Aborts a controller, for the same reason, as soon as one of the signals is. Call what it returns when the controller
 * is of no more use: a signal may live much longer.
 */
export function link(controller: AbortController, ...signals: (AbortSignal | undefined)[]): () => void {
  const unlinks: (() => void)[] = [];
  for (const signal of signals) {
    if (signal === undefined) {
      continue;
    }
    const pass = () => controller.abort(signal.reason);
    if (signal.aborted) {
      pass();
    } else {
      signal.addEventListener("abort", pass, { once: true });
      unlinks.push(() => signal.removeEventListener("abort", pass));
    }
  }
  return () => {
    for (const unlink of unlinks) {
      unlink();
    }
  };
}
