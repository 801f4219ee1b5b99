//! Spreads calls over all addresses of a name.

use std::collections::HashSet;
use std::time::Duration;

use tokio::net::lookup_host;
use tokio::time::timeout;
use tonic::transport::channel::Change;
use tonic::transport::{Channel, Endpoint};

use crate::config::Tls;
use crate::connection::endpoint;
use crate::target::Target;

const LOOK_AGAIN: Duration = Duration::from_secs(30);
const LOOK_AGAIN_AFTER_FAILURE: Duration = Duration::from_secs(2);
const MOST_CHANGES: usize = 64;

/// A channel over all addresses of the target, with a task that ends when the channel is gone. `named` finds an address
/// by itself: it serves while the name cannot be looked up, so that calls fail instead of waiting for ever.
pub(crate) fn spread(target: Target, named: Endpoint, tls: Option<Tls>) -> Channel {
    let (channel, changes) = Channel::balance_channel(MOST_CHANGES);
    tokio::spawn(async move {
        let mut known: HashSet<String> = HashSet::new();
        loop {
            let found = addresses(&target).await;
            let pause = if found.is_empty() { LOOK_AGAIN_AFTER_FAILURE } else { LOOK_AGAIN };
            // An empty answer is rather a failure of the name service than the end of all replicas.
            if !found.is_empty() || known.is_empty() {
                let wanted = if found.is_empty() { HashSet::from([String::new()]) } else { found };
                for address in wanted.difference(&known) {
                    let made = match address.as_str() {
                        "" => Ok(named.clone()),
                        address => endpoint(&target, Some(address), tls.as_ref()),
                    };
                    let Ok(made) = made else { continue };
                    let _ = changes.send(Change::Insert(address.clone(), made)).await;
                }
                for address in known.difference(&wanted) {
                    let _ = changes.send(Change::Remove(address.clone())).await;
                }
                known = wanted;
            }
            if timeout(pause, changes.closed()).await.is_ok() {
                return;
            }
        }
    });
    channel
}

async fn addresses(target: &Target) -> HashSet<String> {
    match lookup_host((target.host.as_str(), target.port)).await {
        Ok(found) => found.map(|address| address.to_string()).collect(),
        Err(_) => HashSet::new(),
    }
}
