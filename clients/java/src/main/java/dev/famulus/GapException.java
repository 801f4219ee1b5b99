// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

package dev.famulus;

import io.grpc.Status;

/** Events stayed missing from a stream, time and again. */
public final class GapException extends FamulusException {
  private static final long serialVersionUID = 1L;

  private final long after;
  private final long received;

  GapException(long after, long received) {
    super(Status.Code.DATA_LOSS, "event " + received + " came after event " + after, null);
    this.after = after;
    this.received = received;
  }

  /**
   * The last event before the gap.
   *
   * @return its sequence
   */
  public long after() {
    return after;
  }

  /**
   * The first event behind the gap.
   *
   * @return its sequence
   */
  public long received() {
    return received;
  }

  /** A new stream, perhaps from another replica, may have what is missing. */
  @Override
  public boolean isTransient() {
    return true;
  }
}
