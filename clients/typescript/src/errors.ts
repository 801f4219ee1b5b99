// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

/**
 * The errors of the client.
 *
 *     FamulusError    a call was refused or failed, or a stream broke and could not be resumed
 *     └── GapError    events are missing from a stream, time and again
 *     ToolError       thrown by your tools: its text is told to the model
 *
 * Calls on the raw stubs throw `ConnectError`; `FamulusError.from` tells what is in one.
 */

import { Code, ConnectError } from "@connectrpc/connect";
import { readBadRequest, readErrorInfo, readRetryInfo, type Violation } from "./details.js";
import { ErrorReason } from "./gen/famulus/v1/error_reason_pb.js";
import { cutByTransport, lostConnection } from "./transport_errors.js";

const DOMAIN = "famulus";

/** What a FamulusError is made of. Times are in milliseconds. */
export interface FamulusErrorOptions {
  readonly code: Code;
  readonly reasonName?: string;
  readonly metadata?: Readonly<Record<string, string>>;
  readonly violations?: readonly Violation[];
  readonly retryAfterMs?: number | undefined;
  readonly transient?: boolean;
  readonly cause?: unknown;
}

/** A call was refused or failed. */
export class FamulusError extends Error {
  override readonly name: string = "FamulusError";
  /** The sentence for people, without code and reason. It may change: decide by the reason. */
  readonly rawMessage: string;
  /** The gRPC status. */
  readonly code: Code;
  /** Why: UNSPECIFIED if the service gave no reason (the connection failed, say) or one that this client does not know. */
  readonly reason: ErrorReason;
  /** Name of the reason, such as `RATE_LIMITED`; also of one that this client does not know. Empty if there is none. */
  readonly reasonName: string;
  /** Facts that are documented with the reason. */
  readonly metadata: Readonly<Record<string, string>>;
  /** The fields that are wrong. */
  readonly violations: readonly Violation[];
  /** Milliseconds after which the service invites another attempt. */
  readonly retryAfterMs: number | undefined;
  /**
   * Whether it is the connection or the replica that failed, so that the same call may go well elsewhere; or the
   * credentials ran out in the middle of it, so that it may go well with fresh ones.
   */
  readonly transient: boolean;

  constructor(message: string, options: FamulusErrorOptions) {
    const reasonName = options.reasonName ?? "";
    super(`${codeName(options.code)}${reasonName && ` / ${reasonName}`}: ${message}`, { cause: options.cause });
    this.rawMessage = message;
    this.code = options.code;
    this.reasonName = reasonName;
    this.reason = reasonOf(reasonName);
    this.metadata = options.metadata ?? {};
    this.violations = options.violations ?? [];
    this.retryAfterMs = options.retryAfterMs;
    this.transient = options.transient ?? isTransient(options.code, this.reason);
  }

  /** Name of the gRPC status, such as `NOT_FOUND`. */
  get codeName(): string {
    return codeName(this.code);
  }

  /** What a failed call says, with its details (google.rpc: ErrorInfo, BadRequest, RetryInfo). */
  static from(error: unknown): FamulusError {
    if (error instanceof FamulusError) {
      return error;
    }
    const failed = ConnectError.from(error);
    const details = detailsOf(failed);
    if (details.reasonName) {
      return new FamulusError(failed.rawMessage, { ...details, code: failed.code, cause: error });
    }
    if (lostConnection(failed)) {
      return new FamulusError(failed.rawMessage, { ...details, code: Code.Unavailable, cause: error });
    }
    const transient = isTransient(failed.code, ErrorReason.UNSPECIFIED) || cutByTransport(failed);
    return new FamulusError(failed.rawMessage, { ...details, code: failed.code, transient, cause: error });
  }
}

/** Events stayed missing: after event `after`, event `received` came, again and again. */
export class GapError extends FamulusError {
  override readonly name: string = "GapError";
  readonly after: bigint;
  readonly received: bigint;

  constructor(after: bigint, received: bigint) {
    // A new stream, perhaps from another replica, may have what is missing.
    super(`event ${received} came after event ${after}`, { code: Code.DataLoss, transient: true });
    this.after = after;
    this.received = received;
  }
}

/** Throw it in a tool to tell the model why the call failed. Of other errors the model sees the class only. */
export class ToolError extends Error {
  override readonly name: string = "ToolError";
}

/** Name of a gRPC status as the protocol spells it: `Code.Canceled` is `CANCELLED`. */
export function codeName(code: Code): string {
  return code === Code.Canceled ? "CANCELLED" : Code[code].replace(/(?<=[a-z])(?=[A-Z])/g, "_").toUpperCase();
}

function reasonOf(name: string): ErrorReason {
  const value = (ErrorReason as unknown as Record<string, unknown>)[name];
  return typeof value === "number" ? value : ErrorReason.UNSPECIFIED;
}

function isTransient(code: Code, reason: ErrorReason): boolean {
  switch (code) {
    case Code.Unavailable:
      return true;
    case Code.Aborted:
      return reason === ErrorReason.SLOW_CONSUMER;
    case Code.Unauthenticated:
      return reason === ErrorReason.CREDENTIALS_EXPIRED;
    default:
      return false;
  }
}

type Details = Pick<FamulusErrorOptions, "reasonName" | "metadata" | "violations" | "retryAfterMs">;

/** The details that this client knows; damaged ones and those of others are left out. */
function detailsOf(error: ConnectError): Details {
  let found: Details = {};
  for (const detail of error.details) {
    if (!("type" in detail)) {
      continue; // outgoing: only servers make them
    }
    try {
      found = { ...found, ...read(detail.type, detail.value) };
    } catch {
      // The code and the message still say what they say.
    }
  }
  return found;
}

function read(type: string, bytes: Uint8Array): Details {
  switch (type) {
    case "google.rpc.ErrorInfo": {
      const { domain, reason, metadata } = readErrorInfo(bytes);
      return domain === DOMAIN ? { reasonName: reason, metadata } : {};
    }
    case "google.rpc.BadRequest":
      return { violations: readBadRequest(bytes) };
    case "google.rpc.RetryInfo":
      return { retryAfterMs: readRetryInfo(bytes) };
    default:
      return {};
  }
}
