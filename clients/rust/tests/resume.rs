//! Streams that break are gone on with: no event is lost, none comes twice.
#![cfg(feature = "server")]
#![allow(missing_docs)]

mod scripted;

use std::time::{Duration, Instant};

use famulus::RetryPolicy;
use famulus::v1::{CreateRunRequest, ErrorReason, MessageState, RunEvent, RunState, WatchRunRequest};
use scripted::story::*;
use scripted::{Act, Joined, Scripted, quick, read, refusal, soon};
use tonic::{Code, Status};

fn gone() -> Act {
    Act::Fail(Status::unavailable("gone"))
}

/// The first stream tells two events and then does `ending`; the second one tells the rest.
async fn after_two(ending: Vec<Act>) -> Scripted {
    let mut first = vec![Act::Tell(whole()[..2].to_vec())];
    first.extend(ending);
    Scripted::serve(vec![first, vec![Act::Tell(whole()[2..].to_vec())]]).await
}

async fn goes_on_after(ending: Vec<Act>) {
    let server = after_two(ending).await;
    server.set_run(run(RunState::InProgress, 4));
    let mut stream = server.stream();
    let (sequences, end) = read(&mut stream).await;
    assert_eq!((sequences, end.is_ok()), (vec![1, 2, 3, 4, 5, 6], true));
    assert_eq!(stream.view().text(), "Hello world");
    let watch = WatchRunRequest { run_id: RUN_ID.into(), after_sequence: 2, cancel_on_disconnect: false };
    assert_eq!(server.joined()[1..], [Joined::Watch(watch)]);
}

#[tokio::test]
async fn a_stream_goes_on_when_the_service_is_unavailable() {
    goes_on_after(vec![gone()]).await;
}

#[tokio::test]
async fn a_stream_goes_on_when_it_was_too_slow() {
    goes_on_after(vec![Act::Fail(refusal(Code::Aborted, "SLOW_CONSUMER", None))]).await;
}

#[tokio::test]
async fn a_stream_goes_on_when_the_server_cut_it_off() {
    goes_on_after(vec![Act::Fail(Status::cancelled("CANCELLED"))]).await;
}

#[tokio::test]
async fn a_stream_goes_on_when_a_proxy_says_that_it_was_reset() {
    goes_on_after(vec![Act::Fail(Status::internal("Received RST_STREAM with error code 2"))]).await;
}

#[tokio::test]
async fn a_stream_goes_on_when_it_ended_before_the_run() {
    goes_on_after(vec![]).await;
}

#[tokio::test]
async fn a_stream_goes_on_after_a_gap() {
    goes_on_after(vec![Act::Tell(whole()[3..].to_vec())]).await;
}

#[tokio::test]
async fn a_stream_ends_with_any_other_error() {
    for status in [
        Status::internal("broken"),
        refusal(Code::Internal, "INTERNAL", None),
        refusal(Code::Aborted, "ETAG_MISMATCH", None),
        refusal(Code::NotFound, "THREAD_DELETED", None),
        Status::cancelled("somebody did"),
    ] {
        let code = status.code();
        let server = after_two(vec![Act::Fail(status)]).await;
        let mut stream = server.stream();
        let (sequences, end) = read(&mut stream).await;
        assert_eq!((sequences, end.unwrap_err().code()), (vec![1, 2], code));
        assert_eq!((stream.last_sequence(), server.joined().len()), (2, 1));
        assert!(soon(stream.next()).await.is_none(), "a stream that failed has ended");
    }
}

#[tokio::test]
async fn the_same_request_starts_a_run_until_its_id_is_known() {
    let unnamed = || vec![Act::Heartbeat, gone()];
    let server = Scripted::serve(vec![unnamed(), unnamed(), vec![Act::Tell(whole())]]).await;
    assert!(read(&mut server.stream()).await.1.is_ok());
    let joined = server.joined();
    assert_eq!(joined[0], joined[1]);
    assert_eq!(joined[1], joined[2]);
    let Joined::Stream(request) = &joined[0] else { panic!("it must be StreamRun: {joined:?}") };
    assert_eq!(request.create.as_ref().unwrap().request_id.len(), 36);
}

#[tokio::test]
async fn a_request_id_of_the_callers_is_kept() {
    let server = Scripted::serve(vec![vec![Act::Tell(whole())]]).await;
    let create = CreateRunRequest { request_id: "mine".into(), ..CreateRunRequest::default() };
    assert!(read(&mut server.client().stream_run(create.clone()).start()).await.1.is_ok());
    let Joined::Stream(request) = &server.joined()[0] else { panic!("it must be StreamRun") };
    assert_eq!(request.create, Some(create));
}

#[tokio::test]
async fn a_reader_joins_in_the_middle() {
    let server = Scripted::serve(vec![vec![Act::Tell(whole()[4..].to_vec())]]).await;
    let mut stream = server.client().watch_run(RUN_ID).after_sequence(4).start();
    assert_eq!(read(&mut stream).await.0, [5, 6]);
    assert_eq!(server.joined()[0].after(), 4);
}

#[tokio::test]
async fn events_that_come_again_are_dropped() {
    let twice: Vec<RunEvent> = whole().into_iter().flat_map(|event| [event.clone(), event]).collect();
    let server = Scripted::serve(vec![vec![Act::Tell(twice[..5].to_vec()), gone()], vec![Act::Tell(twice)]]).await;
    assert_eq!(read(&mut server.stream()).await.0, [1, 2, 3, 4, 5, 6]);
}

#[tokio::test]
async fn a_gap_that_stays_is_an_error() {
    let with_gap = || vec![Act::Tell(whole()[1..].to_vec())];
    let server = Scripted::serve(vec![with_gap(), with_gap(), with_gap(), with_gap()]).await;
    let (sequences, end) = read(&mut server.client().watch_run(RUN_ID).start()).await;
    assert_eq!((sequences, end.unwrap_err().code()), (vec![], Code::DataLoss));
    assert_eq!(server.joined().len(), 3);
}

#[tokio::test]
async fn an_attempt_may_jump_and_takes_back_what_was_not_stored() {
    let mut events = whole()[..4].to_vec();
    events.extend([
        attempt(1001, 3),
        text(1002, "all"),
        completed(1003, "Hello all"),
        state(1004, RunState::Completed),
    ]);
    let server = Scripted::serve(vec![vec![Act::Tell(events)]]).await;
    let mut stream = server.stream();
    let mut texts = Vec::new();
    while let Some(event) = soon(stream.next()).await {
        event.unwrap();
        texts.push(stream.view().text());
    }
    assert_eq!(texts[3..6], ["Hello world", "Hello ", "Hello all"]);
    assert_eq!((stream.view().attempt(), stream.last_sequence()), (2, 1004));
}

#[tokio::test]
async fn a_snapshot_stands_for_the_events_that_are_gone() {
    let draft = message("Hello ", MessageState::InProgress);
    let events = vec![snapshot(3, run(RunState::InProgress, 3), vec![draft]), text(4, "world")];
    let server = Scripted::serve(vec![vec![Act::Tell(events), gone()], vec![Act::Tell(whole()[4..].to_vec())]]).await;
    let mut stream = server.client().watch_run(RUN_ID).start();
    soon(stream.next()).await.unwrap().unwrap();
    assert_eq!(stream.view().text(), "Hello ");
    soon(stream.next()).await.unwrap().unwrap();
    assert_eq!(stream.view().text(), "Hello world");
    assert_eq!(read(&mut stream).await.0, [5, 6]);
}

#[tokio::test]
async fn a_stream_that_ends_early_ends_with_a_run_of_which_all_was_seen() {
    let server = Scripted::serve(vec![vec![Act::Tell(whole()[..5].to_vec())]]).await;
    server.set_run(run(RunState::Failed, 5));
    let mut stream = server.stream();
    assert_eq!(read(&mut stream).await.0, [1, 2, 3, 4, 5]);
    assert_eq!(stream.view().run().unwrap().state(), RunState::Failed);
}

#[tokio::test]
async fn a_stream_that_ends_before_it_names_the_run_asks_by_the_same_request() {
    let server = Scripted::serve(vec![vec![], vec![Act::Tell(whole())]]).await;
    server.set_run(run(RunState::InProgress, 1));
    assert!(read(&mut server.stream()).await.1.is_ok());
    let Joined::Stream(request) = &server.joined()[0] else { panic!("it must be StreamRun") };
    assert_eq!(server.created(), [request.create.clone().unwrap()]);
}

#[tokio::test]
async fn kinds_of_a_newer_version_are_skipped_without_a_gap() {
    let mut events = whole();
    events[2].event = None;
    let server = Scripted::serve(vec![vec![Act::Tell(events)]]).await;
    assert_eq!(read(&mut server.stream()).await.0, [1, 2, 4, 5, 6]);
}

#[tokio::test]
async fn a_silent_stream_is_left_for_another() {
    let server = after_two(vec![Act::Heartbeat, Act::Hang]).await;
    let policy = RetryPolicy { silence: Duration::from_millis(500), ..quick() };
    let config = famulus::ClientConfig::new(server.address.to_string()).retry(policy);
    let client = famulus::Client::connect(config).unwrap();
    let mut stream = client.stream_run(CreateRunRequest::default()).start();
    assert_eq!(read(&mut stream).await.0, [1, 2, 3, 4, 5, 6]);
    assert_eq!(server.joined().len(), 2);
    server.until_open(0).await;
}

#[tokio::test]
async fn heartbeats_keep_a_stream_without_events() {
    let mut acts: Vec<Act> = (0..8).flat_map(|_| [Act::Pause(Duration::from_millis(40)), Act::Heartbeat]).collect();
    acts.push(Act::Tell(whole()));
    let server = Scripted::serve(vec![acts]).await;
    let policy = RetryPolicy { silence: Duration::from_millis(250), ..quick() };
    let config = famulus::ClientConfig::new(server.address.to_string()).retry(policy);
    let mut stream = famulus::Client::connect(config).unwrap().watch_run(RUN_ID).start();
    assert_eq!(read(&mut stream).await.0, [1, 2, 3, 4, 5, 6]);
    assert_eq!(server.joined().len(), 1);
}

#[tokio::test]
async fn the_wait_that_the_service_asks_for_is_kept() {
    let told = Duration::from_millis(80);
    let server = after_two(vec![Act::Fail(refusal(Code::Unavailable, "SERVER_DRAINING", Some(told)))]).await;
    let start = Instant::now();
    assert!(read(&mut server.stream()).await.1.is_ok());
    assert!(start.elapsed() >= told);
}

#[tokio::test]
async fn an_outage_that_lasts_too_long_ends_with_its_last_error() {
    let told = Duration::from_secs(6);
    let server = after_two(vec![Act::Fail(refusal(Code::Unavailable, "SERVER_OVERLOADED", Some(told)))]).await;
    let error = read(&mut server.stream()).await.1.unwrap_err();
    assert_eq!((error.reason(), error.retry_after()), (ErrorReason::ServerOverloaded, Some(told)));
    assert_eq!(server.joined().len(), 1, "a wait longer than the patience is not begun");
}
