//! Nothing is left behind when the caller stops reading.
#![cfg(feature = "server")]
#![allow(missing_docs)]

mod scripted;

use std::time::Duration;

use famulus::v1::{CreateRunRequest, RunState};
use famulus::{Client, RunStream};
use scripted::story::*;
use scripted::{Act, Scripted, client_of, quick, read, refusal, soon};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tonic::Code;

async fn hanging() -> Scripted {
    Scripted::serve(vec![vec![Act::Tell(whole()[..2].to_vec()), Act::Hang]]).await
}

fn cancelling(client: &Client) -> RunStream {
    client.stream_run(CreateRunRequest::default()).cancel_on_exit(true).start()
}

/// How many tasks this runtime has, once that stays the same.
async fn tasks() -> usize {
    let metrics = tokio::runtime::Handle::current().metrics();
    let mut before = usize::MAX;
    loop {
        let now = metrics.num_alive_tasks();
        if now == before {
            return now;
        }
        before = now;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn dropping_a_stream_cancels_its_call_and_not_the_run() {
    let server = hanging().await;
    let mut stream = server.stream();
    soon(stream.next()).await.unwrap().unwrap();
    server.until_open(1).await;
    drop(stream);
    server.until_open(0).await;
    assert!(server.cancelled().is_empty());
}

#[tokio::test]
async fn no_task_is_left_behind() {
    let server =
        Scripted::serve((0..20).map(|_| vec![Act::Tell(vec![state(1, RunState::InProgress)]), Act::Hang]).collect())
            .await;
    let before = tasks().await;
    let client = server.client();
    let mut streams: Vec<RunStream> = (0..20).map(|_| client.watch_run(RUN_ID).start()).collect();
    for stream in &mut streams {
        soon(stream.next()).await.unwrap().unwrap();
    }
    server.until_open(20).await;
    drop(streams);
    server.until_open(0).await;
    drop(client);
    assert_eq!(soon(tasks()).await, before);
}

#[tokio::test]
async fn no_task_is_left_behind_by_a_name_that_is_looked_up() {
    let server = Scripted::serve(vec![vec![Act::Tell(whole())]]).await;
    let before = tasks().await;
    let target = format!("dns:///localhost:{}", server.address.port());
    let client = Client::connect(famulus::ClientConfig::new(target).retry(quick())).unwrap();
    assert!(read(&mut client.stream_run(CreateRunRequest::default()).start()).await.1.is_ok());
    drop(client);
    assert_eq!(soon(tasks()).await, before);
}

#[tokio::test]
async fn a_dropped_next_loses_no_event() {
    let server = Scripted::serve(vec![vec![Act::Tell(whole())]]).await;
    let mut stream = server.stream();
    let mut sequences = Vec::new();
    loop {
        match tokio::time::timeout(Duration::from_micros(50), stream.next()).await {
            Ok(Some(event)) => sequences.push(event.unwrap().sequence),
            Ok(None) => break,
            Err(_) => {}
        }
    }
    assert_eq!(sequences, [1, 2, 3, 4, 5, 6]);
}

#[tokio::test]
async fn a_stream_that_is_not_polled_is_not_opened() {
    let server = hanging().await;
    drop(server.stream());
    drop(cancelling(&server.client()));
    assert_eq!((server.joined().len(), server.created().len()), (0, 0));
}

#[tokio::test]
async fn dropping_a_stream_cancels_the_run_where_that_was_asked_for() {
    let server = hanging().await;
    let mut stream = cancelling(&server.client());
    soon(stream.next()).await.unwrap().unwrap();
    drop(stream);
    assert_eq!(server.until_cancelled().await, [RUN_ID]);
}

#[tokio::test]
async fn closing_a_stream_waits_until_the_run_was_asked_to_stop() {
    let server = hanging().await;
    let mut stream = cancelling(&server.client());
    soon(stream.next()).await.unwrap().unwrap();
    soon(stream.close()).await.unwrap();
    assert_eq!(server.cancelled(), [RUN_ID]);
}

#[tokio::test]
async fn a_run_whose_id_is_not_known_yet_is_cancelled_too() {
    let server = Scripted::serve(vec![vec![Act::Hang]]).await;
    server.set_run(run(RunState::InProgress, 1));
    let mut stream = cancelling(&server.client());
    assert!(tokio::time::timeout(Duration::from_millis(100), stream.next()).await.is_err());
    server.until_open(1).await;
    soon(stream.close()).await.unwrap();
    assert_eq!(server.cancelled(), [RUN_ID]);
}

#[tokio::test]
async fn a_run_that_ended_or_was_refused_is_not_cancelled() {
    let refused = vec![Act::Fail(refusal(Code::FailedPrecondition, "NO_ASSISTANT", None))];
    let server = Scripted::serve(vec![vec![Act::Tell(whole())], refused]).await;
    for _ in 0..2 {
        let mut stream = cancelling(&server.client());
        let _ = read(&mut stream).await;
        soon(stream.close()).await.unwrap();
    }
    assert!(server.cancelled().is_empty());
}

#[tokio::test]
async fn a_server_that_does_not_end_a_stream_after_the_last_event_is_left() {
    let server = Scripted::serve(vec![vec![Act::Tell(whole()), Act::Hang]]).await;
    assert!(read(&mut server.stream()).await.1.is_ok());
    server.until_open(0).await;
}

/// Passes a connection on, and breaks it after so many bytes from the server: politely, or with a reset.
async fn pass_on(client: TcpStream, server: &Scripted, most: u64, reset: bool) {
    if reset {
        client.set_zero_linger().unwrap();
    }
    let (mut from_client, mut to_client) = client.into_split();
    let (from_server, mut to_server) = TcpStream::connect(server.address).await.unwrap().into_split();
    let up = tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_server).await });
    let _ = tokio::io::copy(&mut from_server.take(most), &mut to_client).await;
    up.abort();
}

#[tokio::test]
async fn a_connection_that_breaks_at_any_byte_loses_nothing() {
    let tellings = || (0..200).map(|_| whole().into_iter().map(|event| Act::Tell(vec![event])).collect()).collect();
    let server = Scripted::serve(tellings()).await;
    server.set_run(run(RunState::InProgress, 6));
    let proxy = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = proxy.local_addr().unwrap();
    let passed = server.clone();
    tokio::spawn(async move {
        // Each connection carries a little more than the one before.
        for bytes in (60..).step_by(17) {
            let (client, _) = proxy.accept().await.unwrap();
            pass_on(client, &passed, bytes, bytes % 2 == 0).await;
        }
    });
    let client = client_of(address);
    let mut stream = client.stream_run(CreateRunRequest::default()).start();
    let (sequences, end) = read(&mut stream).await;
    end.unwrap();
    assert_eq!((sequences, stream.view().text()), (vec![1, 2, 3, 4, 5, 6], "Hello world".to_owned()));
}
