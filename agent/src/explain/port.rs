//! A protocol and port, as people write it.

use palisade_common::parse::protocol;

use crate::facts::{NamedPort, Protocol};
use crate::observe::events::protocol_name;

/// `tcp/80`, `80/TCP`, `80` (TCP), `tcp/http`, `http` (of whatever protocol), `icmp`, `ip-47`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortSpec {
    /// IP protocol; ICMP stands for that of either family. `None`: whichever a port of that name has.
    pub protocol: Option<u8>,
    pub port: PortOf,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortOf {
    Number(u16),
    Name(String),
    /// The protocol has no ports.
    None,
}

const MEANT: &str = "a port is written tcp/80, udp/53, sctp/NAME, 80 (of TCP), NAME, icmp or ip-47";

impl std::str::FromStr for PortSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?}: {MEANT}");
        let of = |name: &str| {
            let name = name.to_lowercase();
            Protocol::ALL.iter().find(|protocol| protocol.name().to_lowercase() == name).map(|of| of.number())
        };
        let port = |text: &str| match text.parse() {
            Ok(number) => Ok(PortOf::Number(number)),
            Err(_) if text.is_empty() || text.bytes().all(|byte| byte.is_ascii_digit()) => Err(wrong()),
            Err(_) => Ok(PortOf::Name(text.to_owned())),
        };
        if let Some((first, second)) = text.split_once('/') {
            return match (of(first), of(second)) {
                (Some(protocol), _) => Ok(Self { protocol: Some(protocol), port: port(second)? }),
                (None, Some(protocol)) => Ok(Self { protocol: Some(protocol), port: port(first)? }),
                (None, None) => Err(wrong()),
            };
        }
        let lower = text.to_lowercase();
        if let Some(number) = lower.strip_prefix("ip-").and_then(|number| number.parse().ok()) {
            return Ok(Self { protocol: Some(number), port: PortOf::None });
        }
        if lower == "icmp" || lower == "icmpv6" {
            return Ok(Self { protocol: Some(protocol::ICMP), port: PortOf::None });
        }
        if of(text).is_some() {
            return Err(wrong());
        }
        let port = port(text)?;
        let tcp = matches!(port, PortOf::Number(_)).then_some(protocol::TCP);
        Ok(Self { protocol: tcp, port })
    }
}

impl PortSpec {
    /// The protocols and numbers that are meant at somebody who has these named ports.
    pub fn resolved(&self, ports: &[NamedPort]) -> Vec<(u8, u16)> {
        match (&self.port, self.protocol) {
            (PortOf::Number(number), protocol) => vec![(protocol.unwrap_or(protocol::TCP), *number)],
            (PortOf::None, protocol) => protocol.into_iter().map(|protocol| (protocol, 0)).collect(),
            (PortOf::Name(name), protocol) => {
                let its = |port: &&NamedPort| {
                    *port.name == **name && protocol.is_none_or(|protocol| protocol == port.protocol.number())
                };
                ports.iter().filter(its).map(|port| (port.protocol.number(), port.port)).collect()
            }
        }
    }
}

/// As [`PortSpec`] reads it.
pub fn port_text(protocol: u8, port: u16) -> String {
    let name = protocol_name(protocol);
    let has_ports = Protocol::ALL.iter().any(|of| of.number() == protocol);
    if has_ports { format!("{name}/{port}") } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_people_write_it() {
        let named = |name: &str, protocol, port| NamedPort { name: name.into(), protocol, port };
        let ports =
            [named("http", Protocol::Tcp, 8080), named("dns", Protocol::Tcp, 53), named("dns", Protocol::Udp, 53)];
        let resolved = |text: &str| text.parse::<PortSpec>().map(|spec| spec.resolved(&ports));
        for (text, expected) in [
            ("80", vec![(6, 80)]),
            ("tcp/80", vec![(6, 80)]),
            ("80/TCP", vec![(6, 80)]),
            ("UDP/53", vec![(17, 53)]),
            ("sctp/9", vec![(132, 9)]),
            ("http", vec![(6, 8080)]),
            ("dns", vec![(6, 53), (17, 53)]),
            ("udp/dns", vec![(17, 53)]),
            ("dns/tcp", vec![(6, 53)]),
            ("udp/http", vec![]),
            ("icmp", vec![(1, 0)]),
            ("ip-47", vec![(47, 0)]),
        ] {
            assert_eq!(resolved(text), Ok(expected), "{text}");
        }
        for wrong in ["", "tcp", "tcp/", "70000", "tcp/70000", "http/80", "/80"] {
            assert!(resolved(wrong).is_err(), "{wrong:?}");
        }
        assert_eq!(port_text(6, 80), "tcp/80");
        assert_eq!(port_text(1, 0), "icmp");
    }
}
