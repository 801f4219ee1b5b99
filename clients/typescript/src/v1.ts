// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

/**
 * The messages, enums and services of `famulus.v1`, as generated from its protos. Integers of 64 bits, such as
 * sequences, are `bigint`.
 *
 * @packageDocumentation
 */

export * from "./gen/famulus/v1/assistant_pb.js";
export * from "./gen/famulus/v1/assistant_service_pb.js";
export * from "./gen/famulus/v1/error_reason_pb.js";
export * from "./gen/famulus/v1/message_pb.js";
export * from "./gen/famulus/v1/run_event_pb.js";
export * from "./gen/famulus/v1/run_pb.js";
export * from "./gen/famulus/v1/run_service_pb.js";
export * from "./gen/famulus/v1/run_step_pb.js";
export * from "./gen/famulus/v1/thread_pb.js";
export * from "./gen/famulus/v1/thread_service_pb.js";
export * from "./gen/famulus/v1/tool_pb.js";
export * from "./gen/famulus/v1/usage_service_pb.js";
export * from "./gen/famulus/v1/user_data_service_pb.js";
