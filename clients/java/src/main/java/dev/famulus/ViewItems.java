// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

package dev.famulus;

import dev.famulus.v1.RunEvent;
import java.util.ArrayList;
import java.util.Iterator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.function.Function;
import java.util.function.Predicate;

/** Messages or steps of a run in order of appearance, finished ones and drafts. */
final class ViewItems<T> {
  /**
   * Makes the draft of an item: from how it began, or from its id where nobody saw the beginning.
   */
  interface Drafting<T> {
    Draft<T> draft(long began, String id, T base);
  }

  private record Entry<T>(T finished, Draft<T> draft) {
    T item() {
      return draft == null ? finished : draft.build();
    }
  }

  private final Function<T, String> id;
  private final Predicate<T> unfinished;
  private final Drafting<T> drafting;
  private final Map<String, Entry<T>> entries = new LinkedHashMap<>();

  ViewItems(Function<T, String> id, Predicate<T> unfinished, Drafting<T> drafting) {
    this.id = id;
    this.unfinished = unfinished;
    this.drafting = drafting;
  }

  List<T> all() {
    List<T> items = new ArrayList<>(entries.size());
    entries.values().forEach(entry -> items.add(entry.item()));
    return items;
  }

  void begin(long sequence, T item) {
    String itemId = id.apply(item);
    entries.put(itemId, new Entry<>(null, drafting.draft(sequence, itemId, item)));
  }

  void finish(T item) {
    entries.put(id.apply(item), new Entry<>(item, null));
  }

  /** Grows a draft by a delta. What is finished stays as it is. */
  void extend(String itemId, RunEvent delta) {
    Entry<T> entry =
        entries.computeIfAbsent(
            itemId,
            missing -> new Entry<>(null, drafting.draft(delta.getSequence(), itemId, null)));
    if (entry.draft() != null) {
      entry.draft().add(delta);
    }
  }

  /** Drops what was shown behind a sequence and is not stored. */
  void discard(long after) {
    Iterator<Entry<T>> each = entries.values().iterator();
    while (each.hasNext()) {
      Draft<T> draft = each.next().draft();
      if (draft == null) {
        continue;
      }
      if (draft.began() > after) {
        each.remove();
      } else {
        draft.cut(after);
      }
    }
  }

  /** Replaces everything by what is there as of a sequence. */
  void replace(long sequence, List<T> items) {
    entries.clear();
    for (T item : items) {
      if (unfinished.test(item)) {
        begin(sequence, item);
      } else {
        finish(item);
      }
    }
  }
}
