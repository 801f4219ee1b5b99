// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

/** Errors as famulus sends them. */

import { BinaryWriter } from "@bufbuild/protobuf/wire";
import { Code, ConnectError } from "@connectrpc/connect";

interface Refusal {
  readonly code?: Code;
  readonly message?: string;
  readonly reason?: string;
  readonly domain?: string;
  readonly metadata?: Record<string, string>;
  readonly violations?: [string, string][];
  readonly retryAfterMs?: number;
}

export function refusal({ code = Code.Unavailable, message = "as planned", ...more }: Refusal = {}): ConnectError {
  const error = new ConnectError(message, code);
  if (more.reason !== undefined) {
    const info = new BinaryWriter()
      .tag(1, 2)
      .string(more.reason)
      .tag(2, 2)
      .string(more.domain ?? "famulus");
    for (const pair of Object.entries(more.metadata ?? {})) {
      info.tag(3, 2).bytes(strings(...pair));
    }
    error.details.push({ type: "google.rpc.ErrorInfo", value: info.finish() });
  }
  if (more.violations) {
    const bad = new BinaryWriter();
    for (const pair of more.violations) {
      bad.tag(1, 2).bytes(strings(...pair));
    }
    error.details.push({ type: "google.rpc.BadRequest", value: bad.finish() });
  }
  if (more.retryAfterMs !== undefined) {
    const seconds = Math.floor(more.retryAfterMs / 1_000);
    const nanos = Math.round((more.retryAfterMs % 1_000) * 1_000_000);
    const delay = new BinaryWriter().tag(1, 0).int64(seconds).tag(2, 0).int32(nanos).finish();
    error.details.push({ type: "google.rpc.RetryInfo", value: new BinaryWriter().tag(1, 2).bytes(delay).finish() });
  }
  return error;
}

function strings(one: string, two: string): Uint8Array {
  return new BinaryWriter().tag(1, 2).string(one).tag(2, 2).string(two).finish();
}
