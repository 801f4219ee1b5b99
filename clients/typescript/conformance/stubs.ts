// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

/** The raw stubs, by the names of their methods. */

import {
  type DescMessage,
  type DescMethodUnary,
  type DescService,
  fromBinary,
  type MessageShape,
  toBinary,
} from "@bufbuild/protobuf";
import { createClient } from "@connectrpc/connect";
import type { FamulusClient } from "@famulus/client";
import * as v1 from "@famulus/client/v1";

const SERVICES: readonly DescService[] = [
  v1.AssistantService,
  v1.RunService,
  v1.ThreadService,
  v1.UsageService,
  v1.UserDataService,
];

type UnaryMethod = DescMethodUnary<DescMessage, DescMessage>;
type Answer = MessageShape<DescMessage>;
type Stub = (request: Answer, options: { timeoutMs?: number }) => Promise<Answer>;

/** A unary method, found by "famulus.v1.RunService/GetRun". */
export function methodOf(name: string): UnaryMethod {
  const [serviceName, methodName] = name.split("/");
  const method = SERVICES.find((service) => service.typeName === serviceName)?.methods.find(
    (each) => each.name === methodName,
  );
  if (method?.methodKind !== "unary") {
    throw new Error(`there is no unary method ${name}`);
  }
  return method as UnaryMethod;
}

export function decoded(schema: DescMessage, base64: string): Answer {
  return fromBinary(schema, Buffer.from(base64, "base64"));
}

export function encoded(schema: DescMessage, message: Answer): string {
  return Buffer.from(toBinary(schema, message)).toString("base64");
}

/** Calls a method through its generated stub. */
export function call(client: FamulusClient, method: UnaryMethod, request: Answer, timeoutMs?: number): Promise<Answer> {
  const stubs = createClient(method.parent, client.transport) as unknown as Record<string, Stub>;
  const stub = stubs[method.localName];
  if (stub === undefined) {
    throw new Error(`there is no stub of ${method.name}`);
  }
  return stub(request, timeoutMs === undefined ? {} : { timeoutMs });
}
