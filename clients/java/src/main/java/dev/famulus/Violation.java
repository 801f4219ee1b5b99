// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

package dev.famulus;

/**
 * What is wrong with one field of a request.
 *
 * @param field path of the field, such as {@code assistant.tools[3].function.name}
 * @param description a sentence for people
 */
public record Violation(String field, String description) {}
