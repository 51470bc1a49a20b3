//! Frames as lines of text, so that cases can be read and written by people.
//!
//! `KIND SOURCE > DESTINATION WORD…`, where KIND is tcp, udp, sctp, icmp (of the addresses' family), icmp4, icmp6 or
//! proto/NUMBER, and an end is a name or address, with a port for protocols that have them (`x/a:80`, `10.0.0.1:80`,
//! `[fd00::1]:80`); or `arp WORD…`; or `ethertype=NUMBER`. The words:
//!
//! - link: `smac= dmac=` (a MAC address or a name), `vlan=N` and `svlan=N` (outermost first), `cut=N`, `pad=N`
//! - IP: `hop=N`, `options=N`, `ext=hbh,routing,fragment,ah,dst,mobility,hip,shim6`, `frag=OFFSET[+]` (`+`: more follow),
//!   `fid=N`, `length=N`, `ihl=N`, `version=N`, `payload=N` (it really ends after N bytes, and says so)
//! - TCP: `flags=SAFRPU` (by default `A`), `seq=N`, `ack=N`, `doff=N`; `data=N` for every protocol; UDP: `udplen=N`; SCTP: `chunk=N`
//! - ICMP: `type=N code=N id=N`, `target=ADDRESS`, `link=MAC`, and last of all `quote=N quoting PACKET`
//! - ARP: `op=N sha=MAC spa=ADDRESS tha=MAC tpa=ADDRESS`

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::{Arp, Body, Extension, Fragment, Frame, Icmp, IcmpBody, Ip, Mac, Tcp, Upper};

/// What names in a line stand for.
pub trait Names {
    /// `None`: no such name. Names may end in `@6` (IPv6) or `@ll` (IPv6 link-local).
    fn address(&self, name: &str) -> Option<IpAddr>;
    fn mac(&self, name: &str) -> Option<Mac>;
    /// Who has this address on the link, or the router.
    fn mac_of(&self, address: IpAddr) -> Mac;
}

/// Reads `line`.
pub fn frame(line: &str, names: &dyn Names) -> Result<Frame> {
    let words = Words::split(line);
    let first = *words.plain.first().unwrap_or(&"");
    let (source, body) = if first == "arp" {
        let arp = arp(&words, names)?;
        (Some(IpAddr::V4(arp.sender)), Body::Arp(arp))
    } else if let Some(ethertype) = words.number("ethertype")? {
        (None, Body::Other { ethertype: ethertype as u16, data: words.number("data")?.unwrap_or(46) as usize })
    } else {
        let ip = packet(line, names)?;
        (Some(ip.source), Body::Ip(ip))
    };
    let source_mac = match words.get("smac") {
        Some(word) => mac(word, names)?,
        None => source.map_or([0x02, 0, 0, 0, 0, 1], |source| names.mac_of(source)),
    };
    let destination_mac = match words.get("dmac") {
        Some(word) => mac(word, names)?,
        None => destination_mac(&body, names),
    };
    let tags = words
        .pairs
        .iter()
        .filter_map(|(key, value)| match *key {
            "vlan" => Some((0x8100, *value)),
            "svlan" => Some((0x88a8, *value)),
            _ => None,
        })
        .map(|(kind, value)| Ok((kind, value.parse()?)))
        .collect::<Result<_>>()?;
    Ok(Frame {
        source_mac,
        destination_mac,
        tags,
        body,
        cut: words.number("cut")?.map(|length| length as usize),
        padding: words.number("pad")?.unwrap_or(0) as usize,
    })
}

/// Words of a line up to a quoted packet: those with `=`, and the others.
struct Words<'a> {
    plain: Vec<&'a str>,
    pairs: Vec<(&'a str, &'a str)>,
}

impl<'a> Words<'a> {
    fn split(line: &'a str) -> Self {
        let own = line.split(" quoting ").next().unwrap_or("");
        let mut words = Self { plain: Vec::new(), pairs: Vec::new() };
        for word in own.split_whitespace() {
            match word.split_once('=') {
                Some(pair) => words.pairs.push(pair),
                None => words.plain.push(word),
            }
        }
        words
    }

    fn get(&self, key: &str) -> Option<&'a str> {
        self.pairs.iter().find(|(own, _)| *own == key).map(|(_, value)| *value)
    }

    /// Decimal, or hexadecimal behind `0x`.
    fn number(&self, key: &str) -> Result<Option<u64>> {
        self.get(key)
            .map(|value| match value.strip_prefix("0x") {
                Some(digits) => u64::from_str_radix(digits, 16),
                None => value.parse(),
            })
            .transpose()
            .with_context(|| format!("{key} is no number"))
    }
}

fn mac(word: &str, names: &dyn Names) -> Result<Mac> {
    if let Some(mac) = names.mac(word) {
        return Ok(mac);
    }
    let mut mac = [0; 6];
    let mut parts = word.split(':');
    for byte in &mut mac {
        let part = parts.next().with_context(|| format!("{word} is neither a name nor a MAC address"))?;
        *byte = u8::from_str_radix(part, 16).with_context(|| format!("MAC address {word}"))?;
    }
    Ok(mac)
}

fn address(word: &str, names: &dyn Names) -> Result<IpAddr> {
    if let Ok(address) = word.parse() {
        return Ok(address);
    }
    names.address(word).ok_or_else(|| anyhow!("{word} is neither an address nor a name"))
}

/// An end of a packet: its address, and its port where there is one.
fn end(word: &str, names: &dyn Names) -> Result<(IpAddr, Option<u16>)> {
    if let Some(rest) = word.strip_prefix('[') {
        let (inner, port) = rest.split_once("]:").with_context(|| format!("{word}: [address]:port"))?;
        return Ok((address(inner, names)?, Some(port.parse()?)));
    }
    if let Ok(address) = address(word, names) {
        return Ok((address, None));
    }
    let (name, port) = word.rsplit_once(':').with_context(|| format!("{word} is no end of a packet"))?;
    Ok((address(name, names)?, Some(port.parse().with_context(|| format!("port of {word}"))?)))
}

/// Group addresses by RFC 1112 and RFC 2464, the broadcast address, neighbours by their own.
fn destination_mac(body: &Body, names: &dyn Names) -> Mac {
    match body {
        Body::Arp(arp) if arp.operation == 1 => [0xff; 6],
        Body::Arp(arp) => arp.target_mac,
        Body::Other { .. } => [0xff; 6],
        Body::Ip(ip) => match ip.destination {
            IpAddr::V4(to) if to.is_broadcast() => [0xff; 6],
            IpAddr::V4(to) if to.is_multicast() => {
                let [_, b, c, d] = to.octets();
                [0x01, 0, 0x5e, b & 0x7f, c, d]
            }
            IpAddr::V6(to) if to.is_multicast() => {
                let [.., a, b, c, d] = to.octets();
                [0x33, 0x33, a, b, c, d]
            }
            to @ (IpAddr::V4(_) | IpAddr::V6(_)) => names.mac_of(to),
        },
    }
}

fn arp(words: &Words<'_>, names: &dyn Names) -> Result<Arp> {
    let v4 = |key: &str| -> Result<Ipv4Addr> {
        let word = words.get(key).with_context(|| format!("arp needs {key}"))?;
        match address(word, names)? {
            IpAddr::V4(address) => Ok(address),
            IpAddr::V6(address) => bail!("{address} in ARP"),
        }
    };
    let sender = v4("spa")?;
    Ok(Arp {
        operation: words.number("op")?.unwrap_or(1) as u16,
        sender_mac: match words.get("sha") {
            Some(word) => mac(word, names)?,
            None => names.mac_of(sender.into()),
        },
        sender,
        target_mac: words.get("tha").map_or(Ok([0; 6]), |word| mac(word, names))?,
        target: v4("tpa")?,
    })
}

/// Reads an IP packet, the quoted ones too.
fn packet(line: &str, names: &dyn Names) -> Result<Ip> {
    let words = Words::split(line);
    let [kind, source, ">", destination] = words.plain[..] else {
        bail!("a packet is KIND SOURCE > DESTINATION, not {line:?}");
    };
    let (source, source_port) = end(source, names)?;
    let (destination, destination_port) = end(destination, names)?;
    ensure!(source.is_ipv4() == destination.is_ipv4(), "{source} and {destination} are of two families");
    let data = words.number("data")?.unwrap_or(0) as usize;
    let ports = || -> Result<(u16, u16)> {
        Ok((source_port.context("the source has no port")?, destination_port.context("the destination has no port")?))
    };
    let upper = match kind {
        "tcp" => Upper::Tcp(tcp(&words, ports()?, data)?),
        "udp" => {
            let (source, destination) = ports()?;
            Upper::Udp { source, destination, data, length: words.number("udplen")?.map(|length| length as u16) }
        }
        "sctp" => {
            let (source, destination) = ports()?;
            Upper::Sctp { source, destination, chunk: words.number("chunk")?.unwrap_or(0) as u8, data }
        }
        "icmp" => Upper::Icmp(icmp(&words, source.is_ipv6(), line, names)?),
        "icmp4" => Upper::Icmp(icmp(&words, false, line, names)?),
        "icmp6" => Upper::Icmp(icmp(&words, true, line, names)?),
        other => {
            let number = other.strip_prefix("proto/").with_context(|| format!("kind {other}"))?;
            Upper::Other { protocol: number.parse()?, data }
        }
    };
    let link_scope = matches!(&upper, Upper::Icmp(icmp) if icmp.six && (133..=137).contains(&icmp.kind));
    Ok(Ip {
        source,
        destination,
        hop_limit: words.number("hop")?.unwrap_or(if link_scope { 255 } else { 64 }) as u8,
        options: words.number("options")?.unwrap_or(0) as usize,
        extensions: extensions(words.get("ext").unwrap_or(""))?,
        fragment: fragment(&words)?,
        length: words.number("length")?.map(|length| length as u16),
        header_words: words.number("ihl")?.map(|length| length as u8),
        version: words.number("version")?.map(|version| version as u8),
        payload_max: words.number("payload")?.map(|length| length as usize),
        upper,
    })
}

fn tcp(words: &Words<'_>, (source, destination): (u16, u16), data: usize) -> Result<Tcp> {
    let flags = words.get("flags").unwrap_or("A").chars().try_fold(0, |flags, letter| {
        "FSRPAUEC".find(letter).map(|bit| flags | 1 << bit).with_context(|| format!("flag {letter}"))
    })?;
    Ok(Tcp {
        source,
        destination,
        sequence: words.number("seq")?.unwrap_or(1000) as u32,
        acknowledgement: words.number("ack")?.unwrap_or(0) as u32,
        flags,
        data,
        header_words: words.number("doff")?.map(|length| length as u8),
    })
}

fn icmp(words: &Words<'_>, six: bool, line: &str, names: &dyn Names) -> Result<Icmp> {
    let echo = if six { 128 } else { 8 };
    let kind = words.number("type")?.unwrap_or(echo) as u8;
    let target = match words.get("target") {
        Some(word) => match address(word, names)? {
            IpAddr::V6(target) => Some(target),
            IpAddr::V4(target) => bail!("target {target} is not IPv6"),
        },
        None if matches!(kind, 135 | 136) && six => Some(Ipv6Addr::UNSPECIFIED),
        None => None,
    };
    let link = words.get("link").map(|word| mac(word, names)).transpose()?;
    let body = match line.split_once(" quoting ") {
        Some((_, inner)) => {
            let length = words.number("quote")?.unwrap_or(u64::from(u16::MAX)) as usize;
            IcmpBody::Quoted(Box::new(packet(inner, names)?), length)
        }
        None if target.is_some() || link.is_some() => IcmpBody::Neighbour { target, link },
        None => IcmpBody::Data(words.number("data")?.unwrap_or(8) as usize),
    };
    let echo = if six { matches!(kind, 128 | 129) } else { matches!(kind, 0 | 8) };
    let id = words.number("id")?.unwrap_or(if echo { 1 } else { 0 }) as u32;
    Ok(Icmp { six, kind, code: words.number("code")?.unwrap_or(0) as u8, word: id << 16, body })
}

fn fragment(words: &Words<'_>) -> Result<Option<Fragment>> {
    let Some(word) = words.get("frag") else { return Ok(None) };
    let (offset, more) = word.strip_suffix('+').map_or((word, false), |offset| (offset, true));
    Ok(Some(Fragment { offset: offset.parse()?, more, id: words.number("fid")?.unwrap_or(7) as u32 }))
}

fn extensions(list: &str) -> Result<Vec<Extension>> {
    list.split(',')
        .filter(|word| !word.is_empty())
        .map(|word| match word {
            "hbh" => Ok(Extension::HopByHop),
            "routing" => Ok(Extension::Routing),
            "fragment" => Ok(Extension::Fragment),
            "ah" => Ok(Extension::Authentication),
            "dst" => Ok(Extension::Destination),
            "mobility" => Ok(Extension::Mobility),
            "hip" => Ok(Extension::Hip),
            "shim6" => Ok(Extension::Shim6),
            other => bail!("extension header {other}"),
        })
        .collect()
}
