// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

/** How the end of a connection looks in the errors of Connect and Node.js. */

import { Code, type ConnectError } from "@connectrpc/connect";

// Of Node.js, where the connection is gone or could not be made. Certificates that are not trusted are not among them:
// trying again would not help.
const LOST = new Set([
  "ECONNABORTED",
  "ECONNREFUSED",
  "ECONNRESET",
  "EHOSTDOWN",
  "EHOSTUNREACH",
  "ENETDOWN",
  "ENETRESET",
  "ENETUNREACH",
  "ENOTCONN",
  "EPIPE",
  "ERR_HTTP2_GOAWAY_SESSION",
  "ERR_HTTP2_INVALID_SESSION",
  "ERR_HTTP2_INVALID_STREAM",
  "ERR_HTTP2_PING_CANCEL",
  "ERR_HTTP2_SESSION_ERROR",
  "ERR_HTTP2_STREAM_CANCEL",
  "ERR_STREAM_DESTROYED",
  "ERR_STREAM_PREMATURE_CLOSE",
  "ETIMEDOUT",
]);
// So Node.js ends the calls of a connection that is gone, and Connect cannot tell that from a call cut by itself.
const GONE = "http/2 stream closed with error code CANCEL";
const CUT_CODES = new Set([Code.Internal, Code.Unknown, Code.Canceled]);
const CUT_WORDS = /RST_STREAM|GOAWAY|reset|closed|missing status/i;
// All that a server says of a call which it cut off because it stops. What is cancelled here is told with other words.
const CUT_OFF = new Set(["", "CANCELLED"]);

/** Whether the connection was lost, or never made: what gRPC calls UNAVAILABLE. */
export function lostConnection(error: ConnectError): boolean {
  if (fromServer(error)) {
    return false;
  }
  if (error.rawMessage.startsWith(GONE)) {
    return true;
  }
  for (let cause: unknown = error.cause; cause instanceof Error; cause = cause.cause) {
    if ("code" in cause && typeof cause.code === "string" && LOST.has(cause.code)) {
      return true;
    }
  }
  return false;
}

/** Whether the transport ended the call, at either end or in between, and not the service. */
export function cutByTransport(error: ConnectError): boolean {
  if (!CUT_CODES.has(error.code)) {
    return false;
  }
  return CUT_WORDS.test(error.rawMessage) || (error.code === Code.Canceled && CUT_OFF.has(error.rawMessage));
}

function fromServer(error: ConnectError): boolean {
  return error.metadata.has("grpc-status");
}
