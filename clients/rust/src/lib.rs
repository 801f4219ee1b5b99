//! Client of famulus, a gRPC service for stateful AI assistants.
//!
//! [`v1`] holds the messages and stubs that are generated from the service's protos. [`Client`] adds what callers would
//! otherwise get wrong: streams of run events that survive broken connections, waiting for results, answers to function
//! tools, typed errors and connections that suit the service.
//!
//! ```no_run
//! use famulus::v1::run_event::Event;
//! use famulus::v1::{CreateRunRequest, Thread, create_run_request::Target};
//! use famulus::{Client, ClientConfig, user_message};
//!
//! # async fn ask() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::connect(ClientConfig::new("127.0.0.1:7461"))?;
//! let mut stream = client
//!     .stream_run(CreateRunRequest {
//!         target: Some(Target::NewThread(Thread::default())),
//!         assistant_id: "asst_...".into(),
//!         additional_messages: vec![user_message("Why is the sky blue?")],
//!         ..Default::default()
//!     })
//!     .start();
//! while let Some(event) = stream.next().await {
//!     if let Some(Event::TextDelta(delta)) = event?.event {
//!         print!("{}", delta.text);
//!     }
//! }
//! # Ok(())
//! # }
//! ```

mod answering;
mod client;
mod config;
mod connection;
mod drafts;
mod errors;
mod events;
mod following;
mod resolver;
mod retry;
mod status_details;
mod stream;
mod target;
mod tools;
mod unary;
mod view;

/// The messages and stubs of the package `famulus.v1`, as prost and tonic make them.
#[allow(missing_docs, clippy::all, rustdoc::all)]
pub mod v1 {
    include!("gen/famulus.v1.rs");
}

/// What README.md shows has to compile.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

pub use client::{Client, RunStreamBuilder};
pub use config::{ClientConfig, ConfigError, Tls};
pub use connection::{Bearer, Connection};
pub use errors::{Error, Violation};
pub use retry::RetryPolicy;
pub use stream::RunStream;
pub use tonic;
pub use tools::{ToolError, Tools};
pub use view::{RunResult, RunView, is_final, text_of, user_message};
