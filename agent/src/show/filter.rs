//! Which flows are shown.

use std::net::IpAddr;

use clap::Args;
use ipnet::IpNet;

/// Which flows are shown. Everything that is given has to hold.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Which flows")]
pub struct FilterFlags {
    /// One end is this pod.
    #[arg(long, value_name = "NAMESPACE/NAME", value_parser = pod_name)]
    pub pod: Option<String>,
    /// One end is a pod of this namespace.
    #[arg(short, long, value_name = "NAME")]
    pub namespace: Option<String>,
    #[command(flatten)]
    pub other: OtherFlags,
}

/// What does not say whose flow it is.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Which flows")]
pub struct OtherFlags {
    /// One end (with --pod: the other one) is this pod, has this address, or one of this prefix.
    #[arg(long, value_name = "NAMESPACE/NAME|ADDRESS|CIDR", value_parser = peer)]
    pub peer: Option<Peer>,
    /// The destination port.
    #[arg(long, value_name = "N")]
    pub port: Option<u16>,
    /// tcp, udp, sctp, icmp, icmpv6, or ip-N.
    #[arg(long, value_name = "NAME")]
    pub protocol: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    Pod(String),
    Net(IpNet),
}

/// One end of a flow.
#[derive(Clone, Copy, Debug, Default)]
pub struct End<'a> {
    /// `namespace/name`; several with commas where an address is several pods'.
    pub name: Option<&'a str>,
    pub address: Option<IpAddr>,
}

pub fn pod_name(text: &str) -> Result<String, String> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok(text.to_owned())
        }
        _ => Err("a pod is written NAMESPACE/NAME".to_owned()),
    }
}

fn peer(text: &str) -> Result<Peer, String> {
    if let Ok(net) = text.parse::<IpNet>() {
        return Ok(Peer::Net(net));
    }
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(Peer::Net(address.into()));
    }
    if text.split_once('/').is_some_and(|(address, _)| address.parse::<IpAddr>().is_ok()) {
        return Err("the prefix is longer than the address".to_owned());
    }
    pod_name(text).map(Peer::Pod).map_err(|error| format!("neither address nor prefix, and {error}"))
}

impl Peer {
    fn is(&self, end: End<'_>) -> bool {
        match self {
            Self::Pod(name) => end.is_pod(name),
            Self::Net(net) => end.address.is_some_and(|address| net.contains(&address)),
        }
    }
}

impl End<'_> {
    fn is_pod(self, pod: &str) -> bool {
        self.name.is_some_and(|names| names.split(',').any(|name| name == pod))
    }

    fn is_in(self, namespace: &str) -> bool {
        let its = |name: &str| name.split_once('/').is_some_and(|(its, _)| its == namespace);
        self.name.is_some_and(|names| names.split(',').any(its))
    }
}

impl FilterFlags {
    /// `port`: the destination's.
    pub fn admits(&self, ends: [End<'_>; 2], protocol: Option<&str>, port: Option<u16>) -> bool {
        let [one, other] = ends;
        let pod = self.pod.as_deref();
        let ends = [(one, other), (other, one)].into_iter().any(|(end, other)| {
            pod.is_none_or(|pod| end.is_pod(pod)) && self.other.peer.as_ref().is_none_or(|peer| peer.is(other))
        });
        let namespace =
            self.namespace.as_deref().is_none_or(|namespace| one.is_in(namespace) || other.is_in(namespace));
        let wanted = self
            .other
            .protocol
            .as_deref()
            .is_none_or(|wanted| protocol.is_some_and(|is| is.eq_ignore_ascii_case(wanted)));
        ends && namespace && wanted && self.other.port.is_none_or(|wanted| port == Some(wanted))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        filter: FilterFlags,
    }

    #[test]
    fn flows_that_are_shown() {
        let address = |text: &str| Some(text.parse().expect("an address"));
        let web = End { name: Some("shop/web"), address: address("10.0.0.1") };
        let db = End { name: Some("shop/db,ops/db"), address: address("fd00::2") };
        let world = End { name: None, address: address("192.0.2.7") };
        let below_ip = End::default();
        let cases: [(&str, [End<'_>; 2], bool); 17] = [
            ("", [web, db], true),
            ("--pod shop/web", [db, web], true),
            ("--pod shop/we", [db, web], false),
            ("--pod ops/db", [web, db], true),
            ("-n ops", [web, db], true),
            ("-n ops", [web, world], false),
            ("--peer 192.0.2.0/24", [world, web], true),
            ("--peer 192.0.2.7", [web, world], true),
            ("--peer fd00::2", [web, db], true),
            ("--peer fd00::/64", [web, world], false),
            ("--peer 10.0.0.1", [web, below_ip], true),
            // Not the pod's own end.
            ("--pod shop/web --peer 10.0.0.0/8", [web, world], false),
            ("--pod shop/web --peer ops/db", [web, db], true),
            ("--port 443", [web, db], true),
            ("--port 80", [web, db], false),
            ("--protocol TCP --port 443", [web, world], true),
            ("--protocol udp", [web, world], false),
        ];
        for (line, ends, expected) in cases {
            let words = std::iter::once("flows").chain(line.split(' ').filter(|word| !word.is_empty()));
            let filter = Line::try_parse_from(words).expect(line).filter;
            assert_eq!(filter.admits(ends, Some("tcp"), Some(443)), expected, "{line}");
        }
        for wrong in ["--pod web", "--pod a/b/c", "--peer web", "--port 65536", "--peer 10.0.0.0/33"] {
            let words = std::iter::once("flows").chain(wrong.split(' '));
            assert!(Line::try_parse_from(words).is_err(), "{wrong}");
        }
    }
}
