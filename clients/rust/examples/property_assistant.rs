//! An assistant that looks for properties with two tools of ours; prints its answer as it grows.
//!
//! `cargo run --example property_assistant -- [HOST:PORT [MODEL [QUESTION]]]`

use std::error::Error;
use std::io::Write;
use std::sync::Arc;

use famulus::v1::create_run_request::Target;
use famulus::v1::run_event::Event;
use famulus::v1::tool_call::Call;
use famulus::v1::{Assistant, CreateRunRequest, EnsureAssistantRequest, FunctionTool, Thread, Tool, tool};
use famulus::{Client, ClientConfig, ToolError, Tools, user_message};
use serde::{Deserialize, Serialize};
use serde_json::json;

const LISTING: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/properties.json");

#[derive(Clone, Deserialize, Serialize)]
struct Property {
    id: String,
    location: String,
    price: u32,
    bedrooms: i64,
    title: String,
    description: String,
}

#[derive(Deserialize)]
struct Search {
    location: String,
    max_price: Option<f64>,
    min_bedrooms: Option<i64>,
}

#[derive(Deserialize)]
struct Details {
    property_id: String,
}

/// What the model may call.
fn declared(listing: &[Property]) -> Vec<Tool> {
    let function = |name: &str, description: &str, parameters: serde_json::Value| Tool {
        tool: Some(tool::Tool::Function(FunctionTool {
            name: name.into(),
            description: description.into(),
            parameters_json: parameters.to_string(),
            strict: false,
        })),
    };
    let locations: Vec<&str> = listing.iter().map(|property| property.location.as_str()).collect();
    let ids: Vec<&str> = listing.iter().map(|property| property.id.as_str()).collect();
    vec![
        function(
            "search_properties",
            "Finds properties for sale.",
            json!({"type": "object", "required": ["location"], "properties": {
                "location": {"type": "string", "description": "a town", "examples": locations, "default": locations[0]},
                "max_price": {"type": "number", "default": 1_000_000},
                "min_bedrooms": {"type": "integer", "default": 1},
            }}),
        ),
        function(
            "get_property_details",
            "All that is known about one property.",
            json!({"type": "object", "required": ["property_id"], "properties": {
                "property_id": {"type": "string", "enum": ids},
            }}),
        ),
    ]
}

/// What happens when it does.
fn handlers(listing: Vec<Property>) -> Tools {
    let listing = Arc::new(listing);
    let all = listing.clone();
    let search = move |wanted: Search| {
        let fits = |property: &&Property| {
            property.location.to_lowercase().contains(&wanted.location.to_lowercase())
                && wanted.max_price.is_none_or(|most| f64::from(property.price) <= most)
                && wanted.min_bedrooms.is_none_or(|least| property.bedrooms >= least)
        };
        let brief = |property: &Property| json!({"id": property.id, "title": property.title, "price": property.price, "bedrooms": property.bedrooms});
        let found: Vec<_> = all.iter().filter(fits).map(brief).collect();
        async move { Ok(found) }
    };
    let details = move |wanted: Details| {
        let found = listing.iter().find(|property| property.id == wanted.property_id).cloned();
        async move { found.ok_or(ToolError::new(format!("there is no property {}", wanted.property_id))) }
    };
    Tools::new().add("search_properties", search).add("get_property_details", details)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let mut argument = |default: &str| arguments.next().unwrap_or_else(|| default.to_owned());
    let (target, model) = (argument("127.0.0.1:7461"), argument("scripted"));
    let question = argument("Please call search_properties for me.");

    let listing: Vec<Property> = serde_json::from_str(&std::fs::read_to_string(LISTING)?)?;
    let client = Client::connect(ClientConfig::new(target))?;
    let assistant = Assistant {
        name: "Property assistant".into(),
        model,
        instructions: "You help people to find a property. Use the tools; invent nothing.".into(),
        tools: declared(&listing),
        ..Assistant::default()
    };
    let request = EnsureAssistantRequest { assistant: Some(assistant) };
    let ensured = client.assistants().ensure_assistant(request).await?.into_inner();
    let create = CreateRunRequest {
        target: Some(Target::NewThread(Thread { user_id: "user-1".into(), ..Thread::default() })),
        assistant_id: ensured.assistant.unwrap_or_default().id,
        additional_messages: vec![user_message(question)],
        ..CreateRunRequest::default()
    };

    let mut stream = client.stream_run(create).tools(handlers(listing)).cancel_on_exit(true).start();
    while let Some(event) = stream.next().await {
        match event?.event {
            Some(Event::TextDelta(delta)) => print!("{}", delta.text),
            // What was printed before may not hold any more.
            Some(Event::AttemptStarted(_) | Event::Snapshot(_)) => print!("\n{}", stream.view().text()),
            Some(Event::ToolOutputReceived(received)) => {
                for call in received.tool_calls {
                    if let Some(Call::Function(function)) = call.call {
                        println!("{}({}) -> {}", function.name, function.arguments_json, function.output());
                    }
                }
            }
            _ => continue,
        }
        std::io::stdout().flush()?;
    }
    let result = stream.view().result().ok_or("no event brought the run")?;
    println!("\n{}", result.run.state().as_str_name());
    Ok(())
}
