//! The client.

use crate::config::{ClientConfig, ConfigError};
use crate::connection::{Connection, LARGEST_MESSAGE, Runs, open};
use crate::errors::Error;
use crate::following::{Following, repeatable};
use crate::retry::{Outage, RetryPolicy};
use crate::stream::RunStream;
use crate::tools::Tools;
use crate::unary::send;
use crate::v1::assistant_service_client::AssistantServiceClient;
use crate::v1::run_service_client::RunServiceClient;
use crate::v1::thread_service_client::ThreadServiceClient;
use crate::v1::usage_service_client::UsageServiceClient;
use crate::v1::user_data_service_client::UserDataServiceClient;
use crate::v1::{CreateRunRequest, WaitRunRequest};
use crate::view::RunResult;

/// A connection to famulus, the stubs on it, and helpers that follow runs through broken connections.
///
/// Cloning it is cheap and shares the connection. Calls on the stubs fail with [`tonic::Status`], the methods with
/// [`Error`]. When all clones, stubs and streams are dropped, the connection closes.
#[derive(Clone, Debug)]
pub struct Client {
    connection: Connection,
    retry: RetryPolicy,
}

impl Client {
    /// Sets the connection up; it is made with the first call. Call it inside of a tokio runtime.
    ///
    /// # Errors
    /// The configuration makes no sense: a wrong target, certificate or retry policy, or a token without TLS.
    pub fn connect(config: ClientConfig) -> Result<Self, ConfigError> {
        config.retry.check().map_err(ConfigError::new)?;
        Ok(Self { connection: open(&config)?, retry: config.retry })
    }

    /// The stub of AssistantService.
    pub fn assistants(&self) -> AssistantServiceClient<Connection> {
        AssistantServiceClient::new(self.connection.clone()).max_decoding_message_size(LARGEST_MESSAGE)
    }

    /// The stub of ThreadService.
    pub fn threads(&self) -> ThreadServiceClient<Connection> {
        ThreadServiceClient::new(self.connection.clone()).max_decoding_message_size(LARGEST_MESSAGE)
    }

    /// The stub of RunService.
    pub fn runs(&self) -> RunServiceClient<Connection> {
        RunServiceClient::new(self.connection.clone()).max_decoding_message_size(LARGEST_MESSAGE)
    }

    /// The stub of UsageService.
    pub fn usage(&self) -> UsageServiceClient<Connection> {
        UsageServiceClient::new(self.connection.clone()).max_decoding_message_size(LARGEST_MESSAGE)
    }

    /// The stub of UserDataService.
    pub fn user_data(&self) -> UserDataServiceClient<Connection> {
        UserDataServiceClient::new(self.connection.clone()).max_decoding_message_size(LARGEST_MESSAGE)
    }

    /// Starts a run and follows it to its end.
    ///
    /// With a `request_id` in `create`, the same call joins the run that an earlier one started; without one, each call
    /// starts a run.
    pub fn stream_run(&self, create: CreateRunRequest) -> RunStreamBuilder {
        self.builder(Origin::Create(Box::new(create)))
    }

    /// Follows a run that exists to its end.
    pub fn watch_run(&self, run_id: impl Into<String>) -> RunStreamBuilder {
        self.builder(Origin::Run(run_id.into()))
    }

    /// Starts a run and returns it when it has ended. Without `tools` (`None`) it also returns in REQUIRES_ACTION.
    /// Dropping the future does not stop the run.
    pub async fn run_to_end(
        &self,
        create: CreateRunRequest,
        tools: impl Into<Option<Tools>>,
    ) -> Result<RunResult, Error> {
        if let Some(tools) = tools.into() {
            let mut stream = self.stream_run(create).tools(tools).start();
            while let Some(event) = stream.next().await {
                event?;
            }
            return stream.view().result().ok_or(Error::unavailable("the stream ended without a run"));
        }
        let (runs, request) = (self.runs(), repeatable(create));
        let created = send(&self.retry, || async { runs.clone().create_run(request.clone()).await }).await?;
        self.wait_run(created.run.unwrap_or_default().id).await
    }

    /// Waits until a run has ended or needs action. Dropping the future does not stop the run.
    pub async fn wait_run(&self, run_id: impl Into<String>) -> Result<RunResult, Error> {
        let (mut runs, request) = (self.runs(), WaitRunRequest { run_id: run_id.into() });
        let mut outage = Outage::new(self.retry.clone());
        loop {
            let mut call = tonic::Request::new(request.clone());
            call.set_timeout(self.retry.silence);
            match runs.wait_run(call).await {
                Ok(response) => {
                    let response = response.into_inner();
                    return Ok(RunResult { run: response.run.unwrap_or_default(), messages: response.messages });
                }
                Err(status) => tokio::time::sleep(outage.delay_of_wait(status.into())?).await,
            }
        }
    }

    fn builder(&self, origin: Origin) -> RunStreamBuilder {
        let (runs, policy) = (self.runs(), self.retry.clone());
        RunStreamBuilder { runs, policy, origin, after_sequence: 0, tools: None, cancel_on_exit: false }
    }
}

#[derive(Debug)]
enum Origin {
    Create(Box<CreateRunRequest>),
    Run(String),
}

/// How to follow a run. Made by [`Client::stream_run`] and [`Client::watch_run`].
#[derive(Debug)]
#[must_use = "nothing happens before it is started"]
pub struct RunStreamBuilder {
    runs: Runs,
    policy: RetryPolicy,
    origin: Origin,
    after_sequence: i64,
    tools: Option<Tools>,
    cancel_on_exit: bool,
}

impl RunStreamBuilder {
    /// Sequence of the last event that was seen before: what follows it is given. 0, the default, starts at the first.
    pub fn after_sequence(mut self, sequence: i64) -> Self {
        self.after_sequence = sequence;
        self
    }

    /// Answers the run's function calls.
    pub fn tools(mut self, tools: impl Into<Option<Tools>>) -> Self {
        self.tools = tools.into();
        self
    }

    /// Whether to cancel the run where the stream is dropped before the run has ended: best effort, in a task of at most
    /// 5 s. [`RunStream::close`] waits for it.
    pub fn cancel_on_exit(mut self, cancel: bool) -> Self {
        self.cancel_on_exit = cancel;
        self
    }

    /// The stream. The first call is made when it is polled.
    pub fn start(self) -> RunStream {
        let (after, policy) = (self.after_sequence, self.policy.clone());
        let following = match self.origin {
            Origin::Create(create) => Following::started_by(*create, after, policy),
            Origin::Run(run_id) => Following::named(&run_id, after, policy),
        };
        RunStream::new(self.runs, self.policy, following, self.tools, self.cancel_on_exit)
    }
}
