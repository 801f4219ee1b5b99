//! Any unary method by name, called with the generated stubs.

use std::time::Duration;

use famulus::Client;
use famulus::tonic::{Request, Status};
use famulus::v1::*;
use prost::Message;

/// The serialized response of a call.
pub type Called = Result<Vec<u8>, Status>;

fn request<M: Message + Default>(bytes: &[u8], timeout: Option<Duration>) -> Result<Request<M>, Status> {
    let message = M::decode(bytes).map_err(|error| Status::invalid_argument(error.to_string()))?;
    let mut request = Request::new(message);
    if let Some(timeout) = timeout {
        request.set_timeout(timeout);
    }
    Ok(request)
}

macro_rules! methods {
    ($($service:literal $stub:ident { $($name:literal $method:ident $request:ident,)* })*) => {
        /// Calls a method such as `famulus.v1.RunService/GetRun`.
        pub async fn call(client: &Client, method: &str, bytes: &[u8], timeout: Option<Duration>) -> Called {
            match method {
                $($(concat!("famulus.v1.", $service, "/", $name) => {
                    let response = client.$stub().$method(request::<$request>(bytes, timeout)?).await?;
                    Ok(response.into_inner().encode_to_vec())
                })*)*
                _ => Err(Status::unimplemented(format!("the stubs have no method {method}"))),
            }
        }
    };
}

methods! {
    "AssistantService" assistants {
        "CreateAssistant" create_assistant CreateAssistantRequest,
        "EnsureAssistant" ensure_assistant EnsureAssistantRequest,
        "GetAssistant" get_assistant GetAssistantRequest,
        "ListAssistants" list_assistants ListAssistantsRequest,
        "ListAssistantVersions" list_assistant_versions ListAssistantVersionsRequest,
        "UpdateAssistant" update_assistant UpdateAssistantRequest,
        "DeleteAssistant" delete_assistant DeleteAssistantRequest,
    }
    "ThreadService" threads {
        "CreateThread" create_thread CreateThreadRequest,
        "GetThread" get_thread GetThreadRequest,
        "ListThreads" list_threads ListThreadsRequest,
        "UpdateThread" update_thread UpdateThreadRequest,
        "DeleteThread" delete_thread DeleteThreadRequest,
        "ForkThread" fork_thread ForkThreadRequest,
        "CreateMessage" create_message CreateMessageRequest,
        "GetMessage" get_message GetMessageRequest,
        "ListMessages" list_messages ListMessagesRequest,
        "UpdateMessage" update_message UpdateMessageRequest,
        "DeleteMessage" delete_message DeleteMessageRequest,
    }
    "RunService" runs {
        "CreateRun" create_run CreateRunRequest,
        "WaitRun" wait_run WaitRunRequest,
        "GetRun" get_run GetRunRequest,
        "ListRuns" list_runs ListRunsRequest,
        "UpdateRun" update_run UpdateRunRequest,
        "CancelRun" cancel_run CancelRunRequest,
        "SubmitToolOutputs" submit_tool_outputs SubmitToolOutputsRequest,
        "ListRunSteps" list_run_steps ListRunStepsRequest,
        "GetRunStep" get_run_step GetRunStepRequest,
        "RateRun" rate_run RateRunRequest,
    }
    "UsageService" usage {
        "QueryUsage" query_usage QueryUsageRequest,
    }
    "UserDataService" user_data {
        "DeleteUserData" delete_user_data DeleteUserDataRequest,
        "GetDeletionReceipt" get_deletion_receipt GetDeletionReceiptRequest,
    }
}

macro_rules! pages {
    ($($name:literal $request:ident $response:ident $items:ident,)*) => {
        /// The ids of the items of a page, and the request for the next one, if there is one.
        pub fn page(method: &str, asked: &[u8], answered: &[u8]) -> Result<(Vec<String>, Option<Vec<u8>>), Status> {
            let damaged = |error: prost::DecodeError| Status::invalid_argument(error.to_string());
            match method.rsplit('/').next().unwrap_or_default() {
                $($name => {
                    let page = $response::decode(answered).map_err(damaged)?;
                    let mut next = $request::decode(asked).map_err(damaged)?;
                    next.page_token = page.next_page_token;
                    let more = !next.page_token.is_empty();
                    Ok((page.$items.into_iter().map(|item| item.id).collect(), more.then(|| next.encode_to_vec())))
                })*
                _ => Err(Status::unimplemented(format!("{method} lists nothing that has ids"))),
            }
        }
    };
}

pages! {
    "ListAssistants" ListAssistantsRequest ListAssistantsResponse assistants,
    "ListAssistantVersions" ListAssistantVersionsRequest ListAssistantVersionsResponse assistants,
    "ListThreads" ListThreadsRequest ListThreadsResponse threads,
    "ListMessages" ListMessagesRequest ListMessagesResponse messages,
    "ListRuns" ListRunsRequest ListRunsResponse runs,
    "ListRunSteps" ListRunStepsRequest ListRunStepsResponse steps,
}
