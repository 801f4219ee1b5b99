// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

/** Messages and steps that a run is still writing. */

import { clone, create, type DescMessage, type MessageShape } from "@bufbuild/protobuf";
import type { RunEvent } from "./gen/famulus/v1/run_event_pb.js";

/** What the items of one kind have in common. */
export interface ItemKind<Desc extends DescMessage> {
  readonly schema: Desc;
  /** Whether the item is still being written. */
  unfinished(item: MessageShape<Desc>): boolean;
  /** Applies a delta. */
  grow(item: MessageShape<Desc>, event: RunEvent): void;
}

type Item<Desc extends DescMessage> = MessageShape<Desc> & { id: string };

/** Something unfinished: how it began, at which sequence, and the deltas that came since. */
class Draft<Desc extends DescMessage> {
  #built: Item<Desc> | undefined;
  #applied = 0;
  #deltas: RunEvent[] = [];

  constructor(
    readonly kind: ItemKind<Desc>,
    readonly began: bigint,
    readonly base: Item<Desc>,
  ) {}

  add(event: RunEvent): void {
    this.#deltas.push(event);
  }

  /** The item as it is now. Each delta is applied once, however often this is called. */
  build(): Item<Desc> {
    if (this.#built === undefined) {
      this.#built = clone(this.kind.schema, this.base) as Item<Desc>;
      this.#applied = 0;
    }
    for (const event of this.#deltas.slice(this.#applied)) {
      this.kind.grow(this.#built, event);
    }
    this.#applied = this.#deltas.length;
    return this.#built;
  }

  /** Drops the deltas behind a sequence. */
  cut(after: bigint): void {
    this.#deltas = this.#deltas.filter((event) => event.sequence <= after);
    this.#built = undefined;
  }
}

/** Messages or steps of a run in order of appearance, finished ones and drafts. */
export class Items<Desc extends DescMessage> {
  readonly #kind: ItemKind<Desc>;
  readonly #items = new Map<string, Item<Desc> | Draft<Desc>>();

  constructor(kind: ItemKind<Desc>) {
    this.#kind = kind;
  }

  all(): Item<Desc>[] {
    return Array.from(this.#items.values(), (item) => (item instanceof Draft ? item.build() : item));
  }

  start(sequence: bigint, item: Item<Desc> | undefined): void {
    if (item) this.#items.set(item.id, new Draft(this.#kind, sequence, item));
  }

  finish(item: Item<Desc> | undefined): void {
    if (item) this.#items.set(item.id, item);
  }

  extend(id: string, event: RunEvent): void {
    let item = this.#items.get(id);
    if (item === undefined) {
      // Who joined in the middle has not seen the start.
      const base = Object.assign(create(this.#kind.schema), { id }) as Item<Desc>;
      item = new Draft(this.#kind, event.sequence, base);
      this.#items.set(id, item);
    }
    if (item instanceof Draft) {
      item.add(event);
    }
  }

  /** Drops what was shown behind a sequence and is not stored. */
  discard(after: bigint): void {
    for (const [id, item] of this.#items) {
      if (!(item instanceof Draft)) {
        continue;
      }
      if (item.began > after) {
        this.#items.delete(id);
      } else {
        item.cut(after);
      }
    }
  }

  /** Replaces everything by what is there as of a sequence. */
  replace(sequence: bigint, items: readonly Item<Desc>[]): void {
    this.#items.clear();
    for (const item of items) {
      this.#items.set(item.id, this.#kind.unfinished(item) ? new Draft(this.#kind, sequence, item) : item);
    }
  }
}
