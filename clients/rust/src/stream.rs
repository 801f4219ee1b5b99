//! The events of a run, as a stream.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_core::Stream;
use tokio::time::{Sleep, sleep, timeout};
use tonic::{Response, Status};

use crate::answering::{Answering, look_up};
use crate::connection::Runs;
use crate::errors::Error;
use crate::events::Events;
use crate::following::{Following, Joining, open_calls, requested_calls};
use crate::retry::RetryPolicy;
use crate::tools::Tools;
use crate::unary::send;
use crate::v1::{CancelRunRequest, Run, RunEvent, ToolCall};
use crate::view::RunView;

/// How long a server has to end a stream after the last event.
const LAST_WORD: Duration = Duration::from_secs(1);
const CANCEL_WITHIN: Duration = Duration::from_secs(5);

type Pending<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// The events of one run in order, each once, over as many streams as it takes.
///
/// It ends after the last event of the run, and with an [`Error`] where the run cannot be followed any more. Dropped, it
/// cancels the open call and the tools that still run; the run goes on, unless `cancel_on_exit` was asked for.
/// [`next`](Self::next) may be dropped and called again without losing an event. Nothing happens before it is polled.
#[must_use = "nothing happens before a stream is polled"]
pub struct RunStream {
    runs: Runs,
    policy: RetryPolicy,
    following: Following,
    answering: Option<Answering>,
    cancel_on_exit: bool,
    phase: Phase,
    batch: std::vec::IntoIter<RunEvent>,
    /// Runs while nothing comes.
    silence: Option<Pin<Box<Sleep>>>,
}

enum Phase {
    /// Nothing is open.
    Apart,
    /// The event that asked for outputs may be among those seen before: is there one?
    Recalling(Pending<Result<Run, Error>>),
    Joining(Pending<Result<Events, Status>>),
    Reading(Events),
    /// The stream ended OK. Has the run?
    LookingUp(Pending<Result<Run, Error>>),
    Waiting(Pin<Box<Sleep>>),
    /// Lets the server end the call: cancelled, it would count as failed there.
    Parting(Events, Pin<Box<Sleep>>),
    Over,
}

impl RunStream {
    pub(crate) fn new(
        runs: Runs,
        policy: RetryPolicy,
        following: Following,
        tools: Option<Tools>,
        cancel_on_exit: bool,
    ) -> Self {
        let answering = tools.map(|tools| Answering::new(tools, runs.clone(), policy.clone()));
        let phase = if answering.is_some() && following.last_sequence > 0 {
            Phase::Recalling(Box::pin(look_up(following.looking_up(), runs.clone(), policy.clone())))
        } else {
            Phase::Apart
        };
        let batch = Vec::new().into_iter();
        Self { runs, policy, following, answering, cancel_on_exit, phase, batch, silence: None }
    }

    /// The next event; None after the last one.
    pub async fn next(&mut self) -> Option<Result<RunEvent, Error>> {
        std::future::poll_fn(|context| Pin::new(&mut *self).poll_next(context)).await
    }

    /// The run as of the event that this stream gave last.
    pub fn view(&self) -> &RunView {
        &self.following.view
    }

    /// Sequence of the last event: `after_sequence` with which to go on later, from another process too.
    pub fn last_sequence(&self) -> i64 {
        self.following.last_sequence
    }

    /// Leaves the stream, as dropping it does, and waits until the run was asked to stop where `cancel_on_exit` says so:
    /// at most 5 s. The error is that of the cancelling.
    pub async fn close(mut self) -> Result<(), Error> {
        match self.leave() {
            Some(cancelling) => cancelling.await,
            None => Ok(()),
        }
    }

    /// Cancels what is open; what is left to do is to cancel the run.
    fn leave(&mut self) -> Option<Pending<Result<(), Error>>> {
        self.phase = Phase::Over;
        self.answering = None;
        let cancels = std::mem::take(&mut self.cancel_on_exit) && self.following.may_go_on();
        cancels.then(|| self.cancelling())
    }

    fn cancelling(&self) -> Pending<Result<(), Error>> {
        let policy = RetryPolicy { give_up_after: CANCEL_WITHIN, ..self.policy.clone() };
        let (runs, known) = (self.runs.clone(), self.view().run_id().to_owned());
        let found = look_up(self.following.looking_up(), runs.clone(), policy.clone());
        let cancel = async move {
            let run_id = if known.is_empty() { found.await?.id } else { known };
            let request = CancelRunRequest { run_id };
            send(&policy, || async { runs.clone().cancel_run(request.clone()).await }).await.map(drop)
        };
        let late = |_| Error::unavailable("the run could not be cancelled in time");
        Box::pin(async move { timeout(CANCEL_WITHIN, cancel).await.map_err(late)? })
    }

    /// Goes on until there is an event; None after the last one.
    fn poll_event(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<RunEvent>, Error>> {
        loop {
            if let Some(answering) = &mut self.answering {
                answering.poll_failure(context)?;
            }
            if let Some(event) = self.batch.next() {
                if self.take(&event)? && event.event.is_some() {
                    return Poll::Ready(Ok(Some(event)));
                }
                continue;
            }
            match &mut self.phase {
                Phase::Apart => self.phase = Phase::Joining(self.join()),
                Phase::Recalling(run) => {
                    let run = ready!(run.as_mut().poll(context))?;
                    self.following.view.name(&run.id);
                    self.answer(&open_calls(&run));
                    self.phase = Phase::Apart;
                }
                Phase::Joining(call) => match call.as_mut().poll(context) {
                    Poll::Ready(Ok(events)) => self.phase = Phase::Reading(events),
                    Poll::Ready(Err(status)) => self.broken(status.into())?,
                    Poll::Pending => ready!(self.poll_silence(context))?,
                },
                Phase::Reading(events) => match events.poll_next(context) {
                    Poll::Ready(Some(Ok(events))) => self.heard(events),
                    Poll::Ready(Some(Err(status))) => self.broken(status.into())?,
                    Poll::Ready(None) => {
                        let run = self.following.looking_up();
                        let run = look_up(run, self.runs.clone(), self.policy.clone());
                        self.phase = Phase::LookingUp(Box::pin(run));
                    }
                    Poll::Pending => ready!(self.poll_silence(context))?,
                },
                Phase::LookingUp(run) => {
                    let run = ready!(run.as_mut().poll(context));
                    match run.and_then(|run| self.following.ended(run)) {
                        Ok(()) => self.end(),
                        Err(error) => self.broken(error)?,
                    }
                }
                Phase::Waiting(wait) => {
                    ready!(wait.as_mut().poll(context));
                    self.phase = Phase::Apart;
                }
                Phase::Parting(events, limit) => match events.poll_next(context) {
                    Poll::Ready(Some(Ok(_))) => {}
                    Poll::Ready(_) => self.end(),
                    Poll::Pending => {
                        ready!(limit.as_mut().poll(context));
                        self.end();
                    }
                },
                Phase::Over => return Poll::Ready(Ok(None)),
            }
        }
    }

    fn join(&mut self) -> Pending<Result<Events, Status>> {
        let mut runs = self.runs.clone();
        match self.following.joining() {
            Joining::Stream(request) => {
                Box::pin(async move { runs.stream_run(*request).await.map(Response::into_inner).map(Events::Streamed) })
            }
            Joining::Watch(request) => {
                Box::pin(async move { runs.watch_run(request).await.map(Response::into_inner).map(Events::Watched) })
            }
        }
    }

    fn heard(&mut self, events: Vec<RunEvent>) {
        self.silence = None;
        if events.is_empty() {
            self.following.heard();
        }
        self.batch = events.into_iter();
    }

    /// Takes in an event; false where the caller has seen it before.
    fn take(&mut self, event: &RunEvent) -> Result<bool, Error> {
        match self.following.take(event) {
            Ok(true) => {}
            Ok(false) => return Ok(false),
            Err(gap) => {
                self.broken(gap)?;
                return Ok(false);
            }
        }
        self.answer(&requested_calls(event));
        if self.following.finished {
            self.part();
        }
        Ok(true)
    }

    fn answer(&mut self, calls: &[&ToolCall]) {
        if let Some(answering) = &mut self.answering {
            answering.answer(calls, self.following.looking_up());
        }
    }

    /// The stream is of no use any more: waits, then joins again.
    fn broken(&mut self, error: Error) -> Result<(), Error> {
        self.silence = None;
        self.batch = Vec::new().into_iter();
        self.phase = Phase::Over; // which drops the call
        self.phase = Phase::Waiting(Box::pin(sleep(self.following.lost(error)?)));
        Ok(())
    }

    /// The last event came.
    fn part(&mut self) {
        self.answering = None;
        self.batch = Vec::new().into_iter();
        self.phase = match std::mem::replace(&mut self.phase, Phase::Over) {
            Phase::Reading(events) => Phase::Parting(events, Box::pin(sleep(LAST_WORD))),
            _ => Phase::Over,
        };
    }

    fn end(&mut self) {
        self.answering = None;
        self.phase = Phase::Over;
    }

    /// Ready where nothing came for too long, or at once where the stream could not go on.
    fn poll_silence(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let limit = self.policy.silence;
        ready!(self.silence.get_or_insert_with(|| Box::pin(sleep(limit))).as_mut().poll(context));
        let error = Error::unavailable(format!("nothing came for {} seconds", limit.as_secs_f64()));
        Poll::Ready(self.broken(error))
    }
}

impl Stream for RunStream {
    type Item = Result<RunEvent, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let event = ready!(self.poll_event(context));
        if event.is_err() {
            self.end();
        }
        Poll::Ready(event.transpose())
    }
}

impl Drop for RunStream {
    fn drop(&mut self) {
        // Best effort: a run that nobody can ask to stop any more ends by itself.
        if let (Some(cancelling), Ok(runtime)) = (self.leave(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(cancelling);
        }
    }
}

impl fmt::Debug for RunStream {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("RunStream")
            .field("run_id", &self.view().run_id())
            .field("last_sequence", &self.last_sequence())
            .finish_non_exhaustive()
    }
}
