//! Does the steps of a scenario with the crate `famulus`, and writes what it saw: `runner TARGET < scenario.json`.

mod lines;
mod methods;
mod scenario;
mod steps;
mod tools;

use std::error::Error;
use std::io::Read;

use famulus::{Client, ClientConfig};

use crate::scenario::Scenario;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let target = std::env::args().nth(1).ok_or("usage: runner TARGET < scenario.json")?;
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text)?;
    let scenario: Scenario = serde_json::from_str(&text)?;
    let mut config = ClientConfig::new(target).allow_plaintext_token();
    if let Some(token) = scenario.token {
        config = config.token(token);
    }
    let client = Client::connect(config)?;
    for (index, step) in scenario.steps.into_iter().enumerate() {
        steps::run(&client, index, step).await?;
    }
    Ok(())
}
