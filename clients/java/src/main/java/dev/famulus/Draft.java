// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

package dev.famulus;

import dev.famulus.v1.RunEvent;
import java.util.ArrayList;
import java.util.List;

/** Something unfinished: how it began, at which sequence, and the deltas that came since. */
abstract class Draft<T> {
  private final long began;
  private final T base;
  private final List<RunEvent> deltas = new ArrayList<>();
  private T built;
  private int applied;

  Draft(long began, T base) {
    this.began = began;
    this.base = base;
    this.built = base;
  }

  /** The item with some more deltas. */
  abstract T grown(T item, List<RunEvent> more);

  final long began() {
    return began;
  }

  final void add(RunEvent delta) {
    deltas.add(delta);
  }

  /** Drops the deltas behind a sequence. */
  final void cut(long after) {
    deltas.removeIf(delta -> delta.getSequence() > after);
    built = base;
    applied = 0;
  }

  /** The item as it is now. Each delta is applied once, however often this is called. */
  final T build() {
    if (applied < deltas.size()) {
      built = grown(built, deltas.subList(applied, deltas.size()));
      applied = deltas.size();
    }
    return built;
  }
}
