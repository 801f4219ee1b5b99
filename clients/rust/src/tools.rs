//! Your functions as tools: arguments in, outputs out, errors told to the model.

use std::collections::HashMap;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::task::JoinSet;

use crate::connection::told;
use crate::v1::tool_call::Call;
use crate::v1::{ToolCall, ToolOutput};

/// Bytes; the service takes no more.
const LARGEST_OUTPUT: usize = 1 << 20;

type Answer = Pin<Box<dyn Future<Output = Result<String, ToolError>> + Send>>;
type Handler = Arc<dyn Fn(Value) -> Answer + Send + Sync>;

/// Handlers of function calls by name.
///
/// ```
/// use famulus::{ToolError, Tools};
/// use serde_json::{Value, json};
///
/// let tools = Tools::new()
///     .add("get_weather", async |arguments: Value| {
///         let city = arguments["city"].as_str().ok_or(ToolError::new("which city?"))?.to_owned();
///         Ok(json!({"city": city, "degrees_celsius": 21}))
///     })
///     .add("roll_dice", async |_: Value| Ok("4".parse::<u8>()?));
/// # let _ = tools;
/// ```
#[derive(Clone)]
pub struct Tools {
    handlers: HashMap<String, Handler>,
    timeout: Duration,
}

impl Default for Tools {
    fn default() -> Self {
        Self { handlers: HashMap::new(), timeout: Duration::from_secs(60) }
    }
}

impl Tools {
    /// No tools yet; each call may take 60 s.
    pub fn new() -> Self {
        Self::default()
    }

    /// How long each call may take.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Adds a handler, or replaces the one of this name.
    ///
    /// It gets the arguments, a JSON object, as anything that serde can make of one. What it returns is the output: text
    /// as it is, anything else as JSON. Calls run in parallel, each in a task of its own, which is dropped where it
    /// takes too long or the stream is left: block no thread in it.
    pub fn add<A, T, F>(mut self, name: impl Into<String>, handler: impl Fn(A) -> F + Send + Sync + 'static) -> Self
    where
        A: DeserializeOwned,
        T: Serialize,
        F: Future<Output = Result<T, ToolError>> + Send + 'static,
    {
        let handler = move |arguments: Value| -> Answer {
            match serde_json::from_value(arguments) {
                Ok(arguments) => {
                    let result = handler(arguments);
                    Box::pin(async move { text_of_result(&result.await?) })
                }
                Err(error) => {
                    let refusal = ToolError::new(format!("the arguments do not fit: {error}"));
                    Box::pin(async move { Err(refusal) })
                }
            }
        };
        self.handlers.insert(name.into(), Arc::new(handler));
        self
    }

    /// Runs the calls in parallel; the outputs are in the order of the calls. Dropped, it aborts what still runs.
    pub(crate) async fn answer_all(&self, calls: Vec<ToolCall>) -> Vec<ToolOutput> {
        let mut running = JoinSet::new();
        for (place, call) in calls.into_iter().enumerate() {
            let tools = self.clone();
            running.spawn(async move { (place, tools.answer(call).await) });
        }
        let mut outputs = running.join_all().await;
        outputs.sort_by_key(|(place, _)| *place);
        outputs.into_iter().map(|(_, output)| output).collect()
    }

    async fn answer(&self, call: ToolCall) -> ToolOutput {
        let call_id = call.id.clone();
        let name = match &call.call {
            Some(Call::Function(function)) => function.name.clone(),
            _ => String::new(),
        };
        let (text, is_error) = match self.run(call).await {
            Ok(text) => (clean(text), false),
            Err(error) => {
                if let Some(cause) = &error.cause {
                    tracing::error!(tool = name, call_id, error = cause, "a tool failed");
                }
                (clean(error.text), true)
            }
        };
        if text.len() > LARGEST_OUTPUT {
            let output = "the tool's result is larger than 1 MiB".to_owned();
            return ToolOutput { call_id, output, is_error: true };
        }
        ToolOutput { call_id, output: text, is_error }
    }

    async fn run(&self, call: ToolCall) -> Result<String, ToolError> {
        let function = match call.call {
            Some(Call::Function(function)) => function,
            _ => return Err(ToolError::new("there is no tool of this name")),
        };
        let handler = self.handlers.get(&function.name).ok_or(ToolError::new("there is no tool of this name"))?.clone();
        let arguments = parse(&function.arguments_json)?;
        // A task of its own: one that panics is an answer too, and one that blocks does not hold up the timer.
        let mut task = JoinSet::new();
        task.spawn(async move { handler(arguments).await });
        match tokio::time::timeout(self.timeout, task.join_next()).await {
            Ok(Some(Ok(answer))) => answer,
            Ok(_) => Err(ToolError::new("the tool failed: panic")),
            Err(_) => {
                let seconds = self.timeout.as_secs_f64();
                Err(ToolError::new(format!("the tool took longer than {seconds} seconds")))
            }
        }
    }
}

impl fmt::Debug for Tools {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.handlers.keys().collect();
        formatter.debug_struct("Tools").field("names", &names).field("timeout", &self.timeout).finish()
    }
}

/// Why a tool failed, as the model is told.
///
/// [`ToolError::new`] has the text that you give. Any other error becomes one with `?`; of that the model sees the name
/// of its type only, because its text may hold what is not the model's to see: that goes to `tracing`. (That is why
/// this is no [`std::error::Error`] itself.)
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToolError {
    text: String,
    cause: Option<String>,
}

impl ToolError {
    /// An error whose text is told to the model.
    pub fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), cause: None }
    }
}

impl<E: std::error::Error> From<E> for ToolError {
    fn from(error: E) -> Self {
        let path = std::any::type_name::<E>();
        let path = path.split('<').next().unwrap_or(path);
        let text = format!("the tool failed: {}", path.rsplit("::").next().unwrap_or(path));
        Self { text, cause: Some(told(&error)) }
    }
}

fn parse(arguments_json: &str) -> Result<Value, ToolError> {
    let text = if arguments_json.is_empty() { "{}" } else { arguments_json };
    match serde_json::from_str(text) {
        Ok(arguments @ Value::Object(_)) => Ok(arguments),
        Ok(_) => Err(ToolError::new("the arguments are not a JSON object")),
        Err(_) => Err(ToolError::new("the arguments are not JSON")),
    }
}

fn text_of_result(result: &impl Serialize) -> Result<String, ToolError> {
    let unwritable = |_| ToolError::new("the tool's result cannot be written as JSON");
    let json = serde_json::to_string(result).map_err(unwritable)?;
    // Only text starts like this in JSON, and text goes as it is.
    if json.starts_with('"') { serde_json::from_str(&json).map_err(unwritable) } else { Ok(json) }
}

/// The text without what the service would refuse.
fn clean(text: String) -> String {
    if text.contains('\0') { text.replace('\0', "\u{fffd}") } else { text }
}
