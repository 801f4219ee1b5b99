package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"

	famulus "github.com/famulus/famulus/clients/go"
	"github.com/famulus/famulus/clients/go/famulusv1"
)

// listing is what is for sale.
type listing []property

type property struct {
	ID          string  `json:"id"`
	Location    string  `json:"location"`
	Price       float64 `json:"price"`
	Bedrooms    int     `json:"bedrooms"`
	Title       string  `json:"title"`
	Description string  `json:"description,omitempty"`
}

func loadListing(path string) (listing, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var properties listing
	return properties, json.Unmarshal(text, &properties)
}

// tools tells the model what it may call.
func (l listing) tools() []*famulusv1.Tool {
	return []*famulusv1.Tool{
		function("search_properties", "Finds properties for sale.", object{
			"location":     object{"type": "string", "enum": l.locations()},
			"max_price":    object{"type": "number", "default": 1_000_000},
			"min_bedrooms": object{"type": "integer"},
		}, "location"),
		function("get_property_details", "Tells all that is known about one property.", object{
			"property_id": object{"type": "string", "description": "The id of a property that a search found."},
		}, "property_id"),
	}
}

// handlers are what runs when it does.
func (l listing) handlers() famulus.Tools {
	return famulus.Tools{
		"search_properties":    famulus.Typed(l.search),
		"get_property_details": famulus.Typed(l.details),
	}
}

type search struct {
	Location    string   `json:"location"`
	MaxPrice    *float64 `json:"max_price"`
	MinBedrooms int      `json:"min_bedrooms"`
}

func (l listing) search(_ context.Context, wanted search) ([]property, error) {
	found := []property{}
	for _, each := range l {
		fits := strings.EqualFold(each.Location, wanted.Location) && each.Bedrooms >= wanted.MinBedrooms
		if fits && (wanted.MaxPrice == nil || each.Price <= *wanted.MaxPrice) {
			each.Description = "" // that is for get_property_details
			found = append(found, each)
		}
	}
	return found, nil
}

func (l listing) details(_ context.Context, wanted struct {
	PropertyID string `json:"property_id"`
}) (property, error) {
	index := slices.IndexFunc(l, func(p property) bool { return p.ID == wanted.PropertyID })
	if index < 0 {
		return property{}, famulus.ToolErrorf("there is no property %q", wanted.PropertyID)
	}
	return l[index], nil
}

func (l listing) locations() []string {
	var names []string
	for _, each := range l {
		names = append(names, each.Location)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// object is a piece of JSON Schema.
type object map[string]any

func function(name, description string, properties object, required ...string) *famulusv1.Tool {
	schema, err := json.Marshal(object{"type": "object", "properties": properties, "required": required})
	if err != nil {
		panic(fmt.Sprintf("the schema of %s: %v", name, err)) // it is written above
	}
	return &famulusv1.Tool{Tool: &famulusv1.Tool_Function{Function: &famulusv1.FunctionTool{
		Name: name, Description: description, ParametersJson: string(schema),
	}}}
}
