// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

/**
 * Follows runs of famulus through broken connections and answers their function tools; start with
 * {@link dev.famulus.FamulusClient}. The messages and stubs are in {@code dev.famulus.v1}.
 */
package dev.famulus;
