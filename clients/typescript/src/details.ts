// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

/**
 * The details of errors that famulus sends: three messages of `google.rpc`, decoded by hand, so that the client needs
 * no generated code but that of famulus.
 */

import { BinaryReader, type WireType } from "@bufbuild/protobuf/wire";

/** What is wrong with one field of a request: its path (`assistant.tools[3].function.name`) and a sentence. */
export interface Violation {
  readonly field: string;
  readonly description: string;
}

/** `google.rpc.ErrorInfo`. */
export interface ErrorInfo {
  reason: string;
  domain: string;
  metadata: Record<string, string>;
}

/** Reads `google.rpc.ErrorInfo`. */
export function readErrorInfo(bytes: Uint8Array): ErrorInfo {
  const info: ErrorInfo = { reason: "", domain: "", metadata: {} };
  readFields(bytes, {
    1: (reader) => {
      info.reason = reader.string();
    },
    2: (reader) => {
      info.domain = reader.string();
    },
    3: (reader) => {
      const [key, value] = readStrings(reader.bytes());
      // Not by assignment: a key `__proto__` must be a key like any other.
      Object.defineProperty(info.metadata, key, { value, enumerable: true, configurable: true, writable: true });
    },
  });
  return info;
}

/** Reads the field violations of `google.rpc.BadRequest`. */
export function readBadRequest(bytes: Uint8Array): Violation[] {
  const violations: Violation[] = [];
  readFields(bytes, {
    1: (reader) => {
      const [field, description] = readStrings(reader.bytes());
      violations.push({ field, description });
    },
  });
  return violations;
}

/** Reads the delay of `google.rpc.RetryInfo`, in milliseconds; undefined where it has none. */
export function readRetryInfo(bytes: Uint8Array): number | undefined {
  let delayMs: number | undefined;
  readFields(bytes, {
    1: (reader) => {
      let seconds = 0;
      let nanos = 0;
      readFields(reader.bytes(), {
        1: (duration) => {
          seconds = Number(duration.int64());
        },
        2: (duration) => {
          nanos = duration.int32();
        },
      });
      delayMs = seconds * 1_000 + nanos / 1_000_000;
    },
  });
  return delayMs;
}

/** Fields 1 and 2 of a message that has two texts. */
function readStrings(bytes: Uint8Array): [string, string] {
  const strings: [string, string] = ["", ""];
  readFields(bytes, {
    1: (reader) => {
      strings[0] = reader.string();
    },
    2: (reader) => {
      strings[1] = reader.string();
    },
  });
  return strings;
}

function readFields(bytes: Uint8Array, fields: Record<number, (reader: BinaryReader) => void>): void {
  const reader = new BinaryReader(bytes);
  while (reader.pos < reader.len) {
    const [number, wireType]: [number, WireType] = reader.tag();
    const read = fields[number];
    if (read) {
      read(reader);
    } else {
      reader.skip(wireType, number);
    }
  }
}
