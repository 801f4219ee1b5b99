//! A RunService on a real port that does what a test says.
#![allow(dead_code, missing_docs)] // each test uses some of it

pub mod story;

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use famulus::v1::run_service_server::{RunService, RunServiceServer};
use famulus::v1::*;
use famulus::{Client, ClientConfig, Error, RetryPolicy, RunStream};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::metadata::MetadataMap;
use tonic::transport::{Server, ServerTlsConfig};
use tonic::{Code, Request, Response, Status};
use tonic_types::{ErrorDetails, StatusExt};

/// Until a test that waits for an event fails.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a stream does next.
pub enum Act {
    Tell(Vec<RunEvent>),
    Heartbeat,
    Fail(Status),
    /// Is silent for so long.
    Pause(Duration),
    /// Stays open and silent until the client leaves.
    Hang,
    /// Goes on when so many calls of SubmitToolOutputs came.
    AwaitOutputs(usize),
}

/// What a client asked a stream for.
#[derive(Clone, Debug, PartialEq)]
pub enum Joined {
    Stream(Box<StreamRunRequest>),
    Watch(WatchRunRequest),
}

impl Joined {
    pub fn after(&self) -> i64 {
        match self {
            Self::Stream(request) => request.after_sequence,
            Self::Watch(request) => request.after_sequence,
        }
    }
}

#[derive(Default)]
pub struct Script {
    streams: Mutex<VecDeque<Vec<Act>>>,
    run: Mutex<Run>,
    refusals: Mutex<VecDeque<Status>>,
    waits: Mutex<VecDeque<Status>>,
    joined: Mutex<Vec<Joined>>,
    created: Mutex<Vec<CreateRunRequest>>,
    open: watch::Sender<usize>,
    outputs: watch::Sender<Vec<SubmitToolOutputsRequest>>,
    cancelled: watch::Sender<Vec<String>>,
    tokens: Mutex<Vec<String>>,
}

#[derive(Clone)]
pub struct Scripted {
    pub script: Arc<Script>,
    pub address: SocketAddr,
}

impl Scripted {
    /// Serves these streams, one after the other.
    pub async fn serve(streams: Vec<Vec<Act>>) -> Self {
        let script = Arc::new(Script { streams: Mutex::new(streams.into()), ..Script::default() });
        Self::start(script, Server::builder()).await
    }

    /// Serves one stream over TLS.
    pub async fn serve_with(tls: ServerTlsConfig) -> Self {
        let streams = Mutex::new(vec![vec![Act::Tell(story::whole())]].into());
        let server = Server::builder().tls_config(tls).unwrap();
        Self::start(Arc::new(Script { streams, ..Script::default() }), server).await
    }

    async fn start(script: Arc<Script>, mut server: Server) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let service = RunServiceServer::new(Served(script.clone()));
        tokio::spawn(server.add_service(service).serve_with_incoming(TcpListenerStream::new(listener)));
        Self { script, address }
    }

    pub fn client(&self) -> Client {
        client_of(self.address)
    }

    pub fn stream(&self) -> RunStream {
        self.client().stream_run(CreateRunRequest::default()).start()
    }

    /// What GetRun, CreateRun and WaitRun answer with.
    pub fn set_run(&self, run: Run) {
        *self.script.run.lock().unwrap() = run;
    }

    /// Answers of the next calls of SubmitToolOutputs.
    pub fn refuse_outputs(&self, refusals: Vec<Status>) {
        *self.script.refusals.lock().unwrap() = refusals.into();
    }

    /// Answers of the next calls of WaitRun, before the run.
    pub fn fail_waits(&self, failures: Vec<Status>) {
        *self.script.waits.lock().unwrap() = failures.into();
    }

    pub fn joined(&self) -> Vec<Joined> {
        self.script.joined.lock().unwrap().clone()
    }

    pub fn created(&self) -> Vec<CreateRunRequest> {
        self.script.created.lock().unwrap().clone()
    }

    pub fn tokens(&self) -> Vec<String> {
        self.script.tokens.lock().unwrap().clone()
    }

    pub async fn until_open(&self, streams: usize) {
        let mut open = self.script.open.subscribe();
        soon(open.wait_for(|open| *open == streams)).await.unwrap();
    }

    pub async fn until_cancelled(&self) -> Vec<String> {
        let mut cancelled = self.script.cancelled.subscribe();
        soon(cancelled.wait_for(|runs| !runs.is_empty())).await.unwrap().clone()
    }

    pub fn cancelled(&self) -> Vec<String> {
        self.script.cancelled.borrow().clone()
    }

    pub fn outputs(&self) -> Vec<SubmitToolOutputsRequest> {
        self.script.outputs.borrow().clone()
    }
}

pub fn client_of(address: SocketAddr) -> Client {
    Client::connect(ClientConfig::new(address.to_string()).retry(quick())).unwrap()
}

/// Waits that a test can afford.
pub fn quick() -> RetryPolicy {
    RetryPolicy {
        initial_delay: Duration::from_millis(2),
        max_delay: Duration::from_millis(10),
        give_up_after: Duration::from_secs(5),
        ..RetryPolicy::default()
    }
}

pub async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.expect("it should have happened by now")
}

/// Reads to the end: the sequences that came, and how it ended.
pub async fn read(stream: &mut RunStream) -> (Vec<i64>, Result<(), Error>) {
    let mut sequences = Vec::new();
    loop {
        match soon(stream.next()).await {
            Some(Ok(event)) => sequences.push(event.sequence),
            Some(Err(error)) => return (sequences, Err(error)),
            None => return (sequences, Ok(())),
        }
    }
}

/// An error in the service's manner.
pub fn refusal(code: Code, reason: &str, retry_after: Option<Duration>) -> Status {
    let mut details = ErrorDetails::new();
    if !reason.is_empty() {
        details.set_error_info(reason, "famulus", HashMap::from([("key".to_owned(), "value".to_owned())]));
    }
    if retry_after.is_some() {
        details.set_retry_info(retry_after);
    }
    if code == Code::InvalidArgument {
        details.add_bad_request_violation("assistant.name", "is too long");
    }
    Status::with_error_details(code, "as planned", details)
}

struct Served(Arc<Script>);

/// Counts a stream for as long as the server holds it.
struct Held(Arc<Script>);

impl Held {
    fn new(script: Arc<Script>) -> Self {
        script.open.send_modify(|open| *open += 1);
        Self(script)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.open.send_modify(|open| *open -= 1);
    }
}

impl Served {
    fn open<T: Send + 'static>(
        &self,
        joined: Joined,
        response: fn(Vec<RunEvent>) -> T,
    ) -> Result<Response<tonic::codegen::BoxStream<T>>, Status> {
        let script = self.0.clone();
        script.joined.lock().unwrap().push(joined);
        let acts = script.streams.lock().unwrap().pop_front().ok_or(Status::unimplemented("no more streams"))?;
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(async move {
            let _held = Held::new(script.clone());
            for act in acts {
                let next = match act {
                    Act::Tell(events) => Ok(response(events)),
                    Act::Heartbeat => Ok(response(Vec::new())),
                    Act::Fail(status) => Err(status),
                    Act::Pause(time) => {
                        tokio::time::sleep(time).await;
                        continue;
                    }
                    Act::Hang => return sender.closed().await,
                    Act::AwaitOutputs(count) => {
                        let mut outputs = script.outputs.subscribe();
                        tokio::select! {
                            _ = outputs.wait_for(|outputs| outputs.len() >= count) => continue,
                            () = sender.closed() => return,
                        }
                    }
                };
                if sender.send(next).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    fn note_token(&self, metadata: &MetadataMap) {
        if let Some(token) = metadata.get("authorization") {
            self.0.tokens.lock().unwrap().push(token.to_str().unwrap().to_owned());
        }
    }

    fn run(&self) -> Run {
        self.0.run.lock().unwrap().clone()
    }
}

#[tonic::async_trait]
impl RunService for Served {
    async fn stream_run(
        &self,
        request: Request<StreamRunRequest>,
    ) -> Result<Response<tonic::codegen::BoxStream<StreamRunResponse>>, Status> {
        self.note_token(request.metadata());
        self.open(Joined::Stream(Box::new(request.into_inner())), |events| StreamRunResponse { events })
    }

    async fn watch_run(
        &self,
        request: Request<WatchRunRequest>,
    ) -> Result<Response<tonic::codegen::BoxStream<WatchRunResponse>>, Status> {
        self.open(Joined::Watch(request.into_inner()), |events| WatchRunResponse { events })
    }

    async fn create_run(&self, request: Request<CreateRunRequest>) -> Result<Response<CreateRunResponse>, Status> {
        self.0.created.lock().unwrap().push(request.into_inner());
        Ok(Response::new(CreateRunResponse { run: Some(self.run()) }))
    }

    async fn get_run(&self, request: Request<GetRunRequest>) -> Result<Response<GetRunResponse>, Status> {
        self.note_token(request.metadata());
        Ok(Response::new(GetRunResponse { run: Some(self.run()) }))
    }

    async fn wait_run(&self, _: Request<WaitRunRequest>) -> Result<Response<WaitRunResponse>, Status> {
        let failure = self.0.waits.lock().unwrap().pop_front();
        match failure {
            Some(status) if status.code() == Code::Ok => std::future::pending().await,
            Some(status) => Err(status),
            None => {
                let messages = vec![story::message("Done.", MessageState::Completed)];
                Ok(Response::new(WaitRunResponse { run: Some(self.run()), messages }))
            }
        }
    }

    async fn cancel_run(&self, request: Request<CancelRunRequest>) -> Result<Response<CancelRunResponse>, Status> {
        self.0.cancelled.send_modify(|runs| runs.push(request.into_inner().run_id));
        Ok(Response::new(CancelRunResponse { run: Some(self.run()) }))
    }

    async fn submit_tool_outputs(
        &self,
        request: Request<SubmitToolOutputsRequest>,
    ) -> Result<Response<SubmitToolOutputsResponse>, Status> {
        self.0.outputs.send_modify(|outputs| outputs.push(request.into_inner()));
        let refusal = self.0.refusals.lock().unwrap().pop_front();
        match refusal {
            Some(status) => Err(status),
            None => Ok(Response::new(SubmitToolOutputsResponse { run: Some(self.run()) })),
        }
    }
}
