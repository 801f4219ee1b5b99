//! Where the service is.

use std::net::IpAddr;

use tonic::transport::Uri;

use crate::config::ConfigError;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// A name or an address, without brackets.
    pub(crate) host: String,
    pub(crate) port: u16,
    /// Whether calls spread over all addresses of the name.
    pub(crate) spread: bool,
}

impl Target {
    pub(crate) fn parse(target: &str) -> Result<Self, ConfigError> {
        let wrong = || ConfigError::new(format!("the target {target:?} is not host:port or dns:///host:port"));
        let (rest, spread) = match target.strip_prefix("dns:///") {
            Some(rest) => (rest, true),
            None => (target, false),
        };
        let uri: Uri = format!("http://{rest}/").parse().map_err(|_| wrong())?;
        let authority = uri.authority().filter(|authority| authority.as_str() == rest).ok_or_else(wrong)?;
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        if host.is_empty() || rest.contains('@') {
            return Err(wrong());
        }
        Ok(Self { host, port: authority.port_u16().ok_or_else(wrong)?, spread })
    }

    /// Whether this is certainly our own machine.
    pub(crate) fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.host.parse().is_ok_and(|address: IpAddr| address.is_loopback())
    }

    /// The host and port as in a URL.
    pub(crate) fn authority(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_host_and_port() {
        let parsed = |text| Target::parse(text).unwrap();
        assert_eq!(parsed("a.example:1"), Target { host: "a.example".into(), port: 1, spread: false });
        assert_eq!(parsed("dns:///a.example:1"), Target { host: "a.example".into(), port: 1, spread: true });
        assert_eq!(parsed("[::1]:7461"), Target { host: "::1".into(), port: 7461, spread: false });
        assert_eq!(parsed("[::1]:7461").authority(), "[::1]:7461");
        for wrong in ["", "a.example", ":1", "http://a.example:1", "a.example:1/x", "me@a.example:1", "a.example:99999"]
        {
            assert!(Target::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn only_this_machine_is_loopback() {
        let loopback = |text| Target::parse(text).unwrap().is_loopback();
        assert!(loopback("127.0.0.1:1") && loopback("[::1]:1") && loopback("localhost:1") && loopback("127.8.9.1:1"));
        assert!(!loopback("0.0.0.0:1") && !loopback("localhost.example:1") && !loopback("10.0.0.1:1"));
    }
}
