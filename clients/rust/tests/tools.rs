//! Function calls are answered while events go on coming, and what goes wrong is told to the model.
#![cfg(feature = "server")]
#![allow(missing_docs)]

mod scripted;

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use famulus::v1::{CreateRunRequest, FunctionCallProblem, Run, RunState, ToolCall, ToolOutput, tool_call::Call};
use famulus::{RunStream, ToolError, Tools};
use scripted::story::*;
use scripted::{Act, Scripted, read, refusal, soon};
use serde_json::{Value, json};
use tokio::sync::{Barrier, Notify};
use tonic::{Code, Status};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

/// A run that asks for these calls and ends once outputs came.
async fn asks_for(calls: Vec<ToolCall>) -> Scripted {
    let question = vec![state(1, RunState::InProgress), requested(2, calls.clone())];
    let rest = vec![state(3, RunState::InProgress), state(4, RunState::Completed)];
    let server = Scripted::serve(vec![vec![Act::Tell(question), Act::AwaitOutputs(1), Act::Tell(rest)]]).await;
    server.set_run(asking(calls, 2));
    server
}

fn stream(server: &Scripted, tools: Tools) -> RunStream {
    server.client().stream_run(CreateRunRequest::default()).tools(tools).start()
}

fn output(call_id: &str, output: &str, is_error: bool) -> ToolOutput {
    ToolOutput { call_id: call_id.into(), output: output.into(), is_error }
}

/// The outputs that are submitted for one call.
async fn answered(name: &str, arguments: &str, tools: Tools) -> ToolOutput {
    let server = asks_for(vec![call("call_1", name, arguments)]).await;
    read(&mut stream(&server, tools)).await.1.unwrap();
    server.outputs()[0].tool_outputs[0].clone()
}

#[tokio::test]
async fn calls_run_at_the_same_time_and_are_submitted_together() {
    let both = Arc::new(Barrier::new(2));
    let meet = move |arguments: Value| {
        let both = both.clone();
        async move {
            both.wait().await;
            Ok(format!("Hi {}", arguments["name"].as_str().unwrap_or_default()))
        }
    };
    let server = asks_for(vec![call("a", "meet", r#"{"name":"Ann"}"#), call("b", "meet", r#"{"name":"Bob"}"#)]).await;
    let (sequences, end) = read(&mut stream(&server, Tools::new().add("meet", meet))).await;
    assert_eq!((sequences, end.is_ok()), (vec![1, 2, 3, 4], true));
    let outputs = server.outputs();
    assert_eq!(outputs.len(), 1);
    assert_eq!(outputs[0].run_id, RUN_ID);
    assert_eq!(outputs[0].tool_outputs, [output("a", "Hi Ann", false), output("b", "Hi Bob", false)]);
}

#[tokio::test]
async fn results_are_text_or_json() {
    let returns = |value: Value| Tools::new().add("f", move |_: Value| std::future::ready(Ok(value.clone())));
    assert_eq!(answered("f", "", returns(json!("te\"xt\0"))).await, output("call_1", "te\"xt\u{fffd}", false));
    assert_eq!(
        answered("f", "{}", returns(json!({"b": [1, null]}))).await,
        output("call_1", r#"{"b":[1,null]}"#, false)
    );
    assert_eq!(answered("f", "{}", returns(json!(7))).await, output("call_1", "7", false));
}

/// Keeps the fields of events.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<String>>>);

impl Visit for Log {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.lock().unwrap().push(format!("{}={value:?}", field.name()));
    }
}

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("famulus")
    }

    fn event(&self, event: &Event<'_>) {
        event.record(&mut self.clone());
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

#[tokio::test]
async fn what_goes_wrong_in_a_tool_is_logged_unless_it_is_for_the_model() {
    let log = Log::default();
    let _guard = tracing::subscriber::set_default(log.clone());
    let tools = Tools::new()
        .add("refuses", async |_: Value| Err::<(), _>(ToolError::new("not today")))
        .add("fails", async |_: Value| Ok("secret".parse::<i32>()?));
    answered("refuses", "{}", tools.clone()).await;
    assert!(log.0.lock().unwrap().is_empty());
    answered("fails", "{}", tools).await;
    let expected =
        ["message=a tool failed", r#"tool="fails""#, r#"call_id="call_1""#, r#"error="invalid digit found in string""#];
    assert_eq!(*log.0.lock().unwrap(), expected);
}

#[tokio::test]
async fn the_model_is_told_what_went_wrong_and_nothing_else() {
    #[derive(serde::Deserialize)]
    struct City {
        city: String,
    }
    let tools = Tools::new()
        .timeout(Duration::from_millis(200))
        .add("refuses", async |_: Value| Err::<(), _>(ToolError::new("not today")))
        .add("fails", async |_: Value| Ok("secret".parse::<i32>()?))
        .add("panics", async |_: Value| if true { panic!("secret") } else { Ok(()) })
        .add("hangs", async |_: Value| std::future::pending::<Result<(), ToolError>>().await)
        .add("talks", async |_: Value| Ok("x".repeat((1 << 20) + 1)))
        .add("typed", async |arguments: City| Ok(arguments.city));
    for (name, arguments, told) in [
        ("unknown", "{}", "there is no tool of this name"),
        ("fails", "{", "the arguments are not JSON"),
        ("fails", "[1]", "the arguments are not a JSON object"),
        ("typed", "{}", "the arguments do not fit: missing field `city`"),
        ("refuses", "{}", "not today"),
        ("fails", "{}", "the tool failed: ParseIntError"),
        ("panics", "{}", "the tool failed: panic"),
        ("hangs", "{}", "the tool took longer than 0.2 seconds"),
        ("talks", "{}", "the tool's result is larger than 1 MiB"),
    ] {
        assert_eq!(answered(name, arguments, tools.clone()).await, output("call_1", told, true));
    }
    assert_eq!(answered("typed", r#"{"city":"Bern"}"#, tools).await, output("call_1", "Bern", false));
}

/// A tool that counts how often it ran.
fn counting() -> (Tools, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    let tool = move |_: Value| std::future::ready(Ok(counted.fetch_add(1, Ordering::SeqCst)));
    (Tools::new().add("f", tool), count)
}

#[tokio::test]
async fn a_call_that_is_asked_for_again_runs_once() {
    let run = asking(vec![call("a", "f", "{}")], 3);
    let again = |sequence| snapshot(sequence, run.clone(), Vec::new());
    let events = vec![again(3), requested(4, vec![call("a", "f", "{}")]), again(5)];
    let rest = vec![Act::Tell(vec![again(6)]), Act::AwaitOutputs(1), Act::Tell(vec![state(7, RunState::Completed)])];
    let cut = Act::Fail(Status::unavailable("gone"));
    let server = Scripted::serve(vec![vec![Act::Tell(events), cut], rest]).await;
    server.set_run(run);
    let (tools, count) = counting();
    read(&mut stream(&server, tools)).await.1.unwrap();
    assert_eq!((count.load(Ordering::SeqCst), server.outputs().len()), (1, 1));
}

#[tokio::test]
async fn a_call_of_the_past_does_not_run_again() {
    let mut events = whole();
    events[2] = requested(3, vec![call("a", "f", "{}")]);
    let server = Scripted::serve(vec![vec![Act::Tell(events[..5].to_vec()), Act::Tell(events[5..].to_vec())]]).await;
    server.set_run(run(RunState::InProgress, 5));
    let (tools, count) = counting();
    read(&mut stream(&server, tools)).await.1.unwrap();
    assert_eq!((count.load(Ordering::SeqCst), server.outputs().len()), (0, 0));
}

#[tokio::test]
async fn a_reader_who_joins_after_the_question_answers_it() {
    let server =
        Scripted::serve(vec![vec![Act::AwaitOutputs(1), Act::Tell(vec![state(6, RunState::Completed)])]]).await;
    server.set_run(asking(vec![call("a", "f", "{}")], 5));
    let (tools, _) = counting();
    let mut stream = server.client().watch_run(RUN_ID).after_sequence(5).tools(tools).start();
    assert_eq!(read(&mut stream).await.0, [6]);
    assert_eq!(server.outputs()[0].tool_outputs, [output("a", "0", false)]);
}

#[tokio::test]
async fn calls_that_the_service_answered_itself_are_left_alone() {
    let mut unknown = call("b", "f", "{}");
    let Some(Call::Function(function)) = &mut unknown.call else { panic!("it is a function") };
    function.set_problem(FunctionCallProblem::UnknownFunction);
    let server = asks_for(vec![call("a", "f", "{}"), unknown]).await;
    read(&mut stream(&server, counting().0)).await.1.unwrap();
    assert_eq!(server.outputs()[0].tool_outputs, [output("a", "0", false)]);
}

#[tokio::test]
async fn outputs_are_submitted_again_while_the_service_is_away() {
    let calls = vec![call("a", "f", "{}")];
    let question = vec![state(1, RunState::InProgress), requested(2, calls.clone())];
    let rest = vec![state(3, RunState::Completed)];
    let server = Scripted::serve(vec![vec![Act::Tell(question), Act::AwaitOutputs(3), Act::Tell(rest)]]).await;
    server.set_run(asking(calls, 2));
    server.refuse_outputs(vec![Status::unavailable("gone"), refusal(Code::Unavailable, "SERVER_OVERLOADED", None)]);
    let (tools, count) = counting();
    read(&mut stream(&server, tools)).await.1.unwrap();
    assert_eq!((count.load(Ordering::SeqCst), server.outputs().len()), (1, 3));
}

#[tokio::test]
async fn that_somebody_else_answered_first_is_no_error() {
    for reason in ["RUN_NOT_WAITING", "TOOL_OUTPUT_CONFLICT", "RUN_EXPIRED"] {
        let server = asks_for(vec![call("a", "f", "{}")]).await;
        server.refuse_outputs(vec![refusal(Code::FailedPrecondition, reason, None)]);
        read(&mut stream(&server, counting().0)).await.1.unwrap();
    }
}

#[tokio::test]
async fn any_other_refusal_of_outputs_ends_the_stream() {
    let calls = vec![call("a", "f", "{}")];
    let server = Scripted::serve(vec![vec![Act::Tell(vec![requested(1, calls.clone())]), Act::Hang]]).await;
    server.set_run(asking(calls, 1));
    server.refuse_outputs(vec![refusal(Code::PermissionDenied, "PERMISSION_DENIED", None)]);
    let error = read(&mut stream(&server, counting().0)).await.1.unwrap_err();
    assert_eq!(error.reason_name(), "PERMISSION_DENIED");
    server.until_open(0).await;
}

#[tokio::test]
async fn a_run_that_ends_does_not_wait_for_its_tools() {
    let calls = vec![call("a", "hangs", "{}")];
    let events = vec![requested(1, calls.clone()), state(2, RunState::Expired)];
    let server = Scripted::serve(vec![vec![Act::Tell(events)]]).await;
    server.set_run(asking(calls, 1));
    let tools = Tools::new().add("hangs", async |_: Value| std::future::pending::<Result<(), ToolError>>().await);
    read(&mut stream(&server, tools)).await.1.unwrap();
}

/// Says so when it is dropped.
struct Dropped(Arc<Notify>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

#[tokio::test]
async fn leaving_a_stream_drops_the_tools_that_still_run() {
    let (began, dropped) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (begin, guard) = (began.clone(), dropped.clone());
    let hangs = move |_: Value| {
        let (begin, guard) = (begin.clone(), Dropped(guard.clone()));
        async move {
            let _guard = guard;
            begin.notify_one();
            std::future::pending::<Result<(), ToolError>>().await
        }
    };
    let server = asks_for(vec![call("a", "hangs", "{}")]).await;
    let mut stream = stream(&server, Tools::new().add("hangs", hangs));
    for _ in 0..2 {
        soon(stream.next()).await.unwrap().unwrap();
    }
    soon(began.notified()).await;
    drop(stream);
    soon(dropped.notified()).await;
}

#[tokio::test]
async fn a_run_is_run_to_its_end_with_tools_and_without() {
    let server = asks_for(vec![call("a", "f", "{}")]).await;
    let result = soon(server.client().run_to_end(CreateRunRequest::default(), counting().0)).await.unwrap();
    assert_eq!(result.run.state(), RunState::Completed);

    let waiting: Run = asking(vec![call("a", "f", "{}")], 2);
    server.set_run(waiting.clone());
    let result = soon(server.client().run_to_end(CreateRunRequest::default(), None)).await.unwrap();
    assert_eq!((result.text().as_str(), result.run), ("Done.", waiting));
    assert_eq!(server.created()[0].request_id.len(), 36);
}
