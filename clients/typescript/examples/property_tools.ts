// Copyright 2026 The famulus authors
// SPDX-License-Identifier: Apache-2.0

/** The tools of the property assistant, over a file of properties. */

import { readFile } from "node:fs/promises";
import type { MessageInitShape } from "@bufbuild/protobuf";
import { ToolError, type Tools } from "@famulus/client";
import type { ToolSchema } from "@famulus/client/v1";

interface Property {
  readonly id: string;
  readonly location: string;
  readonly price: number;
  readonly bedrooms: number;
  readonly title: string;
  readonly description: string;
}

interface Search {
  readonly location: string;
  readonly max_price?: number;
  readonly min_bedrooms?: number;
}

/** What the model is told about the tools. */
export const DECLARATIONS: MessageInitShape<typeof ToolSchema>[] = [
  declaration("search_properties", "Finds properties for sale.", {
    type: "object",
    properties: {
      location: { type: "string", description: "City or part of a city.", examples: ["Bern"] },
      max_price: { type: "number", description: "Highest price.", examples: [1_000_000] },
      min_bedrooms: { type: "integer", description: "Fewest bedrooms." },
    },
    required: ["location"],
  }),
  declaration("get_property_details", "Everything about one property.", {
    type: "object",
    properties: { property_id: { type: "string", description: "Id of the property, from search_properties." } },
    required: ["property_id"],
  }),
];

/** The tools themselves. */
export async function propertyTools(file: URL): Promise<Tools> {
  const properties = JSON.parse(await readFile(file, "utf8")) as Property[];
  return {
    search_properties: ({ location, max_price = Number.POSITIVE_INFINITY, min_bedrooms = 0 }: Search) => {
      const wanted = location.toLowerCase();
      return properties
        .filter((each) => each.location.toLowerCase().includes(wanted))
        .filter((each) => each.price <= max_price && each.bedrooms >= min_bedrooms)
        .map(({ description: _, ...summary }) => summary);
    },
    get_property_details: ({ property_id }: { property_id: string }) => {
      const found = properties.find((each) => each.id === property_id);
      if (found === undefined) {
        throw new ToolError(`there is no property ${property_id}`);
      }
      return found;
    },
  };
}

function declaration(name: string, description: string, parameters: object): MessageInitShape<typeof ToolSchema> {
  const value = { name, description, parametersJson: JSON.stringify(parameters) };
  return { tool: { case: "function", value } };
}
