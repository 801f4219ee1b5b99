//! The tools that every runner has.

use std::time::Duration;

use famulus::{ToolError, Tools};
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
struct Echo {
    text: String,
}

#[derive(Deserialize)]
struct Add {
    a: i64,
    b: i64,
}

/// Those that the scenario names.
pub fn named(names: Option<Vec<String>>, timeout_ms: Option<u64>) -> Option<Tools> {
    let mut tools = Tools::new();
    if let Some(timeout) = timeout_ms {
        tools = tools.timeout(Duration::from_millis(timeout));
    }
    for name in names? {
        tools = match name.as_str() {
            "echo" => tools.add(name, async |arguments: Echo| Ok(format!("echo:{}", arguments.text))),
            "add" => tools.add(name, async |arguments: Add| Ok(arguments.a + arguments.b)),
            "tell" => tools.add(name, async |_: Value| Ok(json!({"told": true}))),
            "refuse" => tools.add(name, async |_: Value| Err::<(), _>(ToolError::new("told to refuse"))),
            "slow" => tools.add(name, async |_: Value| {
                tokio::time::sleep(Duration::from_secs(30)).await;
                Ok("late")
            }),
            "large" => tools.add(name, async |_: Value| Ok("x".repeat((1 << 20) + 1))),
            _ => tools,
        };
    }
    Some(tools)
}
