//! What the suite asks for.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Deserializer};

#[derive(Deserialize)]
pub struct Scenario {
    pub token: Option<String>,
    pub steps: Vec<Step>,
}

#[derive(Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Step {
    Call {
        method: String,
        request: Bytes,
        timeout_ms: Option<u64>,
    },
    Pages {
        method: String,
        request: Bytes,
    },
    Stream {
        create: Bytes,
        #[serde(flatten)]
        follow: Follow,
    },
    Watch {
        run_id: String,
        #[serde(flatten)]
        follow: Follow,
    },
    RunToEnd {
        create: Bytes,
        tools: Option<Vec<String>>,
        tool_timeout_ms: Option<u64>,
    },
    Wait {
        run_id: String,
    },
}

/// How to follow a run.
#[derive(Deserialize)]
pub struct Follow {
    #[serde(default)]
    pub after_sequence: i64,
    pub tools: Option<Vec<String>>,
    pub tool_timeout_ms: Option<u64>,
    pub leave_after: Option<usize>,
    #[serde(default)]
    pub cancel_on_exit: bool,
    pub cancel_after: Option<usize>,
}

/// A serialized message; base64 in JSON.
pub struct Bytes(pub Vec<u8>);

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        BASE64_STANDARD.decode(text).map(Self).map_err(serde::de::Error::custom)
    }
}
